//! A small HTTP/1.1 server for operators: a route table over TCP or Unix sockets, with a limit on everything.
//!
//! Not for traffic of the mesh. A handler changes things only when it is registered under POST; GET never does. No TLS: what
//! must not be seen by everybody on the network belongs on a Unix socket.

mod listen;
mod serve;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method, StatusCode};

pub use listen::{UnixBindError, bind_unix};
pub use serve::{serve_tcp, serve_tcp_to, serve_unix};

/// Content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// Content type of JSON.
pub const JSON: &str = "application/json";

/// A request that was read completely.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET or POST (HEAD is answered like GET, without the body).
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// After the question mark; empty when there is none.
    pub query: String,
    /// As sent.
    pub headers: HeaderMap,
    /// At most 64 KiB.
    pub body: Bytes,
}

impl Request {
    /// The decoded value of the query parameter `name`; empty when it has none (`?reset`).
    pub fn param(&self, name: &str) -> Option<String> {
        self.query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| decode(key) == name)
            .map(|(_, value)| decode(value))
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: Bytes,
}

impl Reply {
    /// 200 with a text.
    pub fn text(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, content_type: TEXT, body: body.into().into() }
    }

    /// 200 with JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self { status: StatusCode::OK, content_type: JSON, body: body.to_string().into() }
    }

    /// The same with another status.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The same with another content type.
    pub fn with_content_type(self, content_type: &'static str) -> Self {
        Self { content_type, ..self }
    }
}

type Answer = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Arc<dyn Fn(Request) -> Answer + Send + Sync>;

/// Which handler answers which method and path. Paths match exactly.
#[derive(Clone, Default)]
pub struct Routes(BTreeMap<String, Methods>);

#[derive(Clone, Default)]
struct Methods {
    get: Option<(&'static str, Handler)>,
    post: Option<(&'static str, Handler)>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Routes {
    /// No routes: 404 to everything but `GET /`, which lists the routes unless it is one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET (and HEAD). The handler must change nothing. `about` is shown in the list of routes.
    pub fn get<F>(
        mut self,
        path: &str,
        about: &'static str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.0.entry(path.to_owned()).or_default().get = Some((about, boxed(handler)));
        self
    }

    /// Answers POST. `about` is shown in the list of routes.
    pub fn post<F>(
        mut self,
        path: &str,
        about: &'static str,
        handler: impl Fn(Request) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Reply> + Send + 'static,
    {
        self.0.entry(path.to_owned()).or_default().post = Some((about, boxed(handler)));
        self
    }

    /// Adds the routes of `other`; where both have one, `other`'s counts.
    pub fn merge(mut self, other: Self) -> Self {
        for (path, Methods { get, post }) in other.0 {
            let methods = self.0.entry(path).or_default();
            methods.get = get.or(methods.get.take());
            methods.post = post.or(methods.post.take());
        }
        self
    }

    /// Only what reads: nobody can change anything by them.
    pub fn reads_only(mut self) -> Self {
        for Methods { post, .. } in self.0.values_mut() {
            *post = None;
        }
        self.0.retain(|_, methods| methods.get.is_some());
        self
    }

    /// Answers one request. Also the way to test handlers without a socket.
    pub async fn answer(&self, request: Request) -> Reply {
        match self.find(&request.method, &request.path) {
            Found::Handler(handler) => handler(request).await,
            Found::Index => Reply::text(self.index()),
            Found::NoMethod(allowed) => Reply::text(format!("{} answers {allowed} only\n", request.path))
                .with_status(StatusCode::METHOD_NOT_ALLOWED),
            Found::NoPath => {
                Reply::text("no such path; GET / lists what there is\n").with_status(StatusCode::NOT_FOUND)
            }
        }
    }

    fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let reading = method == Method::GET || method == Method::HEAD;
        let Some(methods) = self.0.get(path) else {
            return if reading && path == "/" { Found::Index } else { Found::NoPath };
        };
        let route = match method {
            _ if reading => &methods.get,
            &Method::POST => &methods.post,
            _ => &None,
        };
        match (route, &methods.get, &methods.post) {
            (Some((_, handler)), _, _) => Found::Handler(handler),
            (None, Some(_), Some(_)) => Found::NoMethod("GET and POST"),
            (None, Some(_), None) => Found::NoMethod("GET"),
            (None, None, _) => Found::NoMethod("POST"),
        }
    }

    fn index(&self) -> String {
        let line = |method: &str, path: &str, about: &str| format!("{method:<4} {path:<28} {about}\n");
        let mut text = String::new();
        for (path, Methods { get, post }) in &self.0 {
            text.extend(get.iter().map(|(about, _)| line("GET", path, about)));
            text.extend(post.iter().map(|(about, _)| line("POST", path, about)));
        }
        text
    }
}

enum Found<'a> {
    Handler(&'a Handler),
    Index,
    NoMethod(&'static str),
    NoPath,
}

fn boxed<F>(handler: impl Fn(Request) -> F + Send + Sync + 'static) -> Handler
where
    F: Future<Output = Reply> + Send + 'static,
{
    Arc::new(move |request| Box::pin(handler(request)))
}

/// Decodes `%41` and `+`. A malformed escape stays as it is: the handler will not know the value and say so.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let escaped = hex.filter(|_| *first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok());
        rest = if escaped.is_some() { &tail[2..] } else { tail };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        Routes::new()
            .get("/state", "what is", |_| async { Reply::text("state") })
            .get("/level", "the level", |_| async { Reply::text("info") })
            .post("/level", "sets the level", |request| async move {
                Reply::text(request.param("to").unwrap_or_default())
            })
            .post("/stop", "ends it", |_| async { Reply::text("stopped") })
    }

    async fn ask(method: Method, target: &str) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let request = Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let reply = routes().answer(request).await;
        (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn method_and_path_choose_the_handler() {
        assert_eq!(ask(Method::GET, "/state").await, (200, "state".into()));
        assert_eq!(ask(Method::HEAD, "/state").await.0, 200);
        assert_eq!(ask(Method::GET, "/level").await, (200, "info".into()));
        assert_eq!(ask(Method::POST, "/level?to=a%2Cb+c").await, (200, "a,b c".into()));
        assert_eq!(ask(Method::GET, "/nothing").await.0, 404);
        assert_eq!(ask(Method::GET, "/state/").await.0, 404);
    }

    #[tokio::test]
    async fn what_changes_things_does_not_answer_get() {
        assert_eq!(ask(Method::GET, "/stop").await, (405, "/stop answers POST only\n".into()));
        assert_eq!(ask(Method::HEAD, "/stop").await.0, 405);
        assert_eq!(ask(Method::POST, "/state").await, (405, "/state answers GET only\n".into()));
        assert_eq!(ask(Method::DELETE, "/level").await.0, 405);
        assert_eq!(ask(Method::POST, "/").await.0, 404);
    }

    #[tokio::test]
    async fn the_root_lists_the_routes() {
        let (status, text) = ask(Method::GET, "/").await;
        assert_eq!((status, text.lines().count()), (200, 4));
        assert!(text.contains("POST /level") && text.contains("sets the level"), "{text}");
    }

    #[test]
    fn what_only_reads_changes_nothing() {
        let reads = routes().reads_only();
        assert!(matches!(reads.find(&Method::GET, "/level"), Found::Handler(_)));
        assert!(matches!(reads.find(&Method::POST, "/level"), Found::NoMethod("GET")));
        assert!(matches!(reads.find(&Method::POST, "/stop"), Found::NoPath));
        assert!(!reads.index().contains("POST"));
    }

    #[test]
    fn queries_are_decoded() {
        assert_eq!(decode("a%2Cb%zz%"), "a,b%zz%");
        assert_eq!(decode("%ff"), "\u{fffd}");
    }

    #[test]
    fn merged_routes_win() {
        let other = Routes::new().post("/state", "changes it", |_| async { Reply::text("changed") });
        let merged = routes().merge(other);
        assert!(matches!(merged.find(&Method::POST, "/state"), Found::Handler(_)));
        assert!(matches!(merged.find(&Method::GET, "/state"), Found::Handler(_)));
    }
}
