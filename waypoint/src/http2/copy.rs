//! Copies of requests: sent as their bodies come, beside other requests. What is answered is read and thrown away.

use std::future::poll_fn;
use std::io;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::Request;

use super::flow::poll_room;
use super::link::Upstream;

/// What is still to come of a copy. One that is dropped before its end is cancelled.
pub struct Body {
    send: SendStream<Bytes>,
    ended: bool,
}

/// What is answered, and the connection that it comes over.
pub struct Answer {
    response: ResponseFuture,
    upstream: Upstream,
}

impl Upstream {
    /// Begins a copy.
    pub fn copy(mut self, request: Request<()>) -> io::Result<(Body, Answer)> {
        let (response, send) = self.send.send_request(request, false).map_err(io::Error::other)?;
        Ok((Body { send, ended: false }, Answer { response, upstream: self }))
    }
}

impl Body {
    /// Sends bytes when there is room for them.
    pub async fn send(&mut self, mut bytes: Bytes) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = poll_fn(|cx| poll_room(cx, &mut self.send, bytes.len())).await;
            let room = room.ok_or(io::ErrorKind::BrokenPipe)?;
            let part = bytes.split_to(room.min(bytes.len()));
            self.send.send_data(part, false).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// There is no more.
    pub fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        self.send.send_data(Bytes::new(), true).map_err(io::Error::other)
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

impl Answer {
    /// Reads it to its end.
    pub async fn discard(self) -> io::Result<()> {
        let Self { response, upstream } = self;
        let mut body = response.await.map_err(io::Error::other)?.into_body();
        upstream.answered();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(io::Error::other)?;
            // It only fails for a stream that is over.
            let _ = body.flow_control().release_capacity(piece.len());
        }
        body.trailers().await.map(drop).map_err(io::Error::other)
    }
}
