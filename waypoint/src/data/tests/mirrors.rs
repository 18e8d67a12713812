//! Copies of requests: what their servers see, and that nobody else notices.

use model::l7::{BackendTarget, Filter, Fraction, Mirror, PathModifier, PathText, Rule, UrlRewrite};

use super::*;
use crate::rules::Change;

impl World {
    /// A service with one endpoint, whose node tells of each connection all that comes before the end, or that it broke off.
    async fn shadow(&mut self, name: &str, address: &str, answers: bool) -> mpsc::Receiver<String> {
        let workload = made::pod(name, "server", address, name);
        self.writer
            .apply([Update::Service(made::service(name, "10.96.1.9", false)), Update::Workload(workload)]);
        let (tell, told) = mpsc::channel(64);
        let take = move |incoming: Incoming| {
            tokio::spawn(swallow(incoming.accept(HeaderMap::new()).unwrap(), tell.clone(), answers));
        };
        self.takes(address, take).await;
        told
    }

    /// Waits until so many copies have ended so.
    pub(super) async fn copies(&self, how: &str, count: u64) {
        let line = format!("airglow_mirrors_{how}_total {count}");
        soon(&line, async {
            while !self.metrics.encode().lines().any(|own| own == line) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// Reads one request, answers it, and tells what it was.
async fn swallow(mut stream: Stream, tell: mpsc::Sender<String>, answers: bool) {
    if !answers {
        // Takes nothing of what is sent.
        let _stream = stream;
        return std::future::pending().await;
    }
    let mut seen = String::new();
    let whole = |seen: &str| match seen.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains("transfer-encoding: chunked") => body.ends_with("0\r\n\r\n"),
        Some((head, body)) => {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            body.len() >= length.map_or(0, |length| length.parse().unwrap())
        }
        None => false,
    };
    while !whole(&seen) {
        match recv(&mut stream).await {
            Ok(Some(bytes)) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(None) | Err(_) => {
                let _ = tell.send(format!("broken off: {seen}")).await;
                return;
            }
        }
    }
    stream
        .send(Bytes::from_static(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"))
        .unwrap();
    stream.finish().unwrap();
    let _ = tell.send(seen).await;
}

fn mirror(name: &str, share: Fraction) -> Filter {
    let target = BackendTarget::Service { name: made::service_name(name), port: 80 };
    Filter::Mirror(Mirror { target, share })
}

fn mirrored(filters: Vec<Filter>) -> Change {
    Change::Rule(Box::new(Rule { filters, ..made::rule(0, "/", &[("v1", 1)]) }))
}

#[tokio::test]
async fn copies_have_the_body_and_nobody_sees_their_answers() {
    let mut world = World::new().await;
    world.version("v1", "127.7.60.1").await;
    let mut one = world.shadow("one", "127.7.60.2", true).await;
    let mut two = world.shadow("two", "127.7.60.3", true).await;
    let rewrite =
        UrlRewrite { host: None, path: Some(PathModifier::ReplacePrefix(PathText::new("/moved").unwrap())) };
    let never = mirror("two", Fraction::new(0, 100).unwrap());
    let filters =
        vec![mirror("one", Fraction::ALL), never, mirror("two", Fraction::ALL), Filter::Rewrite(rewrite)];
    world.book.store(Arc::new(world.rules.apply([mirrored(filters)])));
    let mut http = world.http("client").await;
    let reply = http.ask("GET /x?q=1 HTTP/1.1\r\nhost: web.shop\r\nx-a: b").await;
    assert_eq!((reply.status, reply.server()), (200, "v1"));
    for shadow in [&mut one, &mut two] {
        let seen = soon("a copy", shadow.recv()).await.unwrap();
        assert!(seen.starts_with("GET /moved/x?q=1 HTTP/1.1\r\nhost: web.shop\r\nx-a: b\r\n"), "{seen}");
        assert!(seen.contains("\r\nconnection: close\r\n") && seen.contains("/sa/client"), "{seen}");
    }

    for (framing, body, expected) in [
        ("content-length: 11", "hello world", "hello world"),
        (
            "transfer-encoding: chunked",
            "5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
            "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        ),
    ] {
        let mut stream = open(&http.client, "10.96.0.1:80").await.unwrap();
        let request =
            format!("POST /x HTTP/1.1\r\nhost: web.shop\r\nexpect: 100-continue\r\n{framing}\r\n\r\n{body}");
        stream.send(request.into()).unwrap();
        for shadow in [&mut one, &mut two] {
            let seen = soon("a copy", shadow.recv()).await.unwrap();
            let (head, body) = seen.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(framing) && !head.contains("expect"), "{seen}");
            assert_eq!(body, expected);
        }
        assert!(soon("the answer", recv(&mut stream)).await.unwrap().unwrap().starts_with(b"HTTP/1.1 200"));
    }
    world.copies("completed", 6).await;
    world.copies("started", 6).await;
    assert!(one.try_recv().is_err() && two.try_recv().is_err(), "one copy of each for each mirror");
}

#[tokio::test]
async fn a_copy_that_cannot_keep_up_is_cut_and_stalls_nothing() {
    let mut world = World::new().await;
    world.endpoint("sink", "127.7.61.1");
    world.writer.apply([Update::Service(made::service("v1", "10.96.1.8", false))]);
    let mut sink = world.shadow("v1", "127.7.61.2", true).await;
    let _stalled = world.shadow("stalled", "127.7.61.3", false).await;
    let filters = vec![mirror("stalled", Fraction::ALL), mirror("nobody", Fraction::ALL)];
    world.book.store(Arc::new(world.rules.apply([mirrored(filters)])));
    let client = world.client("client").await;
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    // More than the windows and buffers of a stream hold.
    let size = 8 << 20;
    let head = format!("POST /x HTTP/1.1\r\nhost: web.shop\r\ncontent-length: {size}\r\n\r\n");
    stream.send(head.into()).unwrap();
    let piece = Bytes::from(vec![b'x'; 64 << 10]);
    for _ in 0..size / piece.len() {
        let mut left = piece.clone();
        while !left.is_empty() {
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx, left.len()));
            let room = soon("room", room).await.unwrap();
            stream.send(left.split_to(room)).unwrap();
        }
    }
    let seen = soon("the request itself", sink.recv()).await.unwrap();
    assert_eq!(seen.split_once("\r\n\r\n").unwrap().1.len(), size, "all of it");
    world.copies("cut", 1).await;
    world.copies("lost", 1).await;
}

#[tokio::test]
async fn a_copy_of_what_breaks_off_breaks_off() {
    let mut world = World::new().await;
    world.version("v1", "127.7.62.1").await;
    let mut shadow = world.shadow("one", "127.7.62.2", true).await;
    world.book.store(Arc::new(world.rules.apply([mirrored(vec![mirror("one", Fraction::ALL)])])));
    let client = world.client("client").await;
    let mut stream = open(&client, "10.96.0.1:80").await.unwrap();
    stream
        .send(Bytes::from_static(
            b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        ))
        .unwrap();
    // The answer comes before the body has ended.
    assert!(soon("the answer", recv(&mut stream)).await.unwrap().is_some());
    stream.reset(Reason::CANCEL);
    let seen = soon("a copy", shadow.recv()).await.unwrap();
    assert!(seen.starts_with("broken off"), "{seen}");
    world.copies("cut", 1).await;
}

#[tokio::test]
async fn a_share_of_the_requests_is_copied() {
    let mut world = World::new().await;
    world.version("v1", "127.7.63.1").await;
    let _shadow = world.shadow("one", "127.7.63.2", true).await;
    let quarter = Fraction::new(1, 4).unwrap();
    world.book.store(Arc::new(world.rules.apply([mirrored(vec![mirror("one", quarter)])])));
    let mut http = world.http("client").await;
    for _ in 0..400 {
        assert_eq!(http.get("/").await.status, 200);
    }
    let text = world.metrics.encode();
    let started = text.lines().find_map(|line| line.strip_prefix("airglow_mirrors_started_total "));
    let started: u64 = started.unwrap().parse().unwrap();
    // 100 are expected; five standard deviations are 43.
    assert!((57..=143).contains(&started), "{started} of 400");
}
