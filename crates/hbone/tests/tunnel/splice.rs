//! Two streams joined: bytes arrive whole and in order whichever side is slow, and ends and aborts are passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hbone::{Carried, Incoming, Opener, Reason, Received, StreamError};
use http::HeaderMap;
use tokio::sync::mpsc;

use crate::support::*;

#[derive(Default)]
struct Counted(AtomicU64, AtomicU64);

impl Carried for Counted {
    fn forth(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    fn back(&self, bytes: u64) {
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// How a splice ended, and what it had carried forth and back.
type Ended = (Result<(), StreamError>, u64, u64);

/// A tunnel to a proxy that passes each stream on through a tunnel to `server`, and what became of each.
async fn through<F>(pki: &Pki, server: fn(Incoming) -> F) -> (Opener, mpsc::Receiver<Ended>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let far = tunnel(pki, server).await;
    let (tell, told) = mpsc::channel(8);
    let near = tunnel(pki, move |incoming| {
        let (far, tell) = (far.clone(), tell.clone());
        async move {
            let second = far.open(to(incoming.authority.as_str())).await.unwrap();
            let mut first = incoming.accept(HeaderMap::new()).unwrap();
            // Something is looked at before it is passed on.
            let mut said = Vec::new();
            let received = std::future::poll_fn(|cx| first.poll_recv(cx, &mut said)).await;
            assert!(matches!(received, Ok(Received::Data(_))));
            let counted = Arc::new(Counted::default());
            let outcome = hbone::splice(first, second, said, &*counted).await;
            let (forth, back) = (counted.0.load(Ordering::Relaxed), counted.1.load(Ordering::Relaxed));
            let _ = tell.send((outcome, forth, back)).await;
        }
    })
    .await;
    (near, told)
}

#[tokio::test]
async fn bytes_arrive_whole_through_two_tunnels_and_ends_are_passed_on() {
    let pki = Pki::new();
    let (opener, mut told) = through(&pki, echo).await;
    for len in [1, 70_000, 5_000_000] {
        soon("the echo", echo_once(&opener, len)).await;
        let (outcome, forth, back) = soon("the end", told.recv()).await.unwrap();
        assert_eq!(outcome, Ok(()));
        assert_eq!((forth, back), (len as u64, len as u64));
    }
}

/// Reads nothing until the peer has ended, answers with the checksum of what came.
async fn slow(incoming: Incoming) {
    let mut stream = incoming.accept(HeaderMap::new()).unwrap();
    tokio::task::yield_now().await;
    let all = recv_all(&mut stream).await.unwrap();
    send(&mut stream, Bytes::from(checksum(&all).to_le_bytes().to_vec())).await.unwrap();
    stream.finish().unwrap();
}

#[tokio::test]
async fn tiny_pieces_to_a_slow_reader_arrive_and_the_answer_comes_after_the_end() {
    let pki = Pki::new();
    let (opener, mut told) = through(&pki, slow).await;
    let sent = pattern(3, 3_000_000);
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    for piece in sent.chunks(700) {
        soon("room", send(&mut stream, Bytes::copy_from_slice(piece))).await.unwrap();
    }
    stream.finish().unwrap();
    let answer = soon("the answer", recv_all(&mut stream)).await.unwrap();
    assert_eq!(answer, checksum(&sent).to_le_bytes());
    assert_eq!(soon("the end", told.recv()).await.unwrap(), (Ok(()), sent.len() as u64, 8));
}

/// Cuts the stream as soon as something has come.
async fn cut(incoming: Incoming) {
    let mut stream = incoming.accept(HeaderMap::new()).unwrap();
    recv(&mut stream).await.unwrap();
    stream.reset(Reason::CONNECT_ERROR);
}

#[tokio::test]
async fn an_abort_on_one_side_is_an_abort_on_the_other() {
    let pki = Pki::new();
    let (opener, mut told) = through(&pki, cut).await;
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    send(&mut stream, Bytes::from_static(b"hello")).await.unwrap();
    let lost = soon("the abort", recv_all(&mut stream)).await;
    assert_eq!(lost, Err(StreamError::Reset(Reason::CONNECT_ERROR)));
    let (outcome, ..) = soon("the end", told.recv()).await.unwrap();
    assert_eq!(outcome, Err(StreamError::Reset(Reason::CONNECT_ERROR)));
}

/// Answers, ends, and is gone.
async fn leave(incoming: Incoming) {
    let mut stream = incoming.accept(HeaderMap::new()).unwrap();
    send(&mut stream, Bytes::from_static(b"bye")).await.unwrap();
    stream.finish().unwrap();
}

#[tokio::test]
async fn a_side_that_leaves_in_good_order_ends_the_other() {
    let pki = Pki::new();
    let (opener, mut told) = through(&pki, leave).await;
    let mut stream = opener.open(to("10.0.0.1:80")).await.unwrap();
    send(&mut stream, Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(soon("the answer", recv_all(&mut stream)).await.unwrap(), b"bye");
    // It may have heard already that nobody listens any more.
    let _ = stream.finish();
    let (outcome, ..) = soon("the end", told.recv()).await.unwrap();
    assert_eq!(outcome, Ok(()));
}
