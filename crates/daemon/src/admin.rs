//! The routes that every process of ours has: metrics, readiness, log level.
//!
//! What belongs to one program (its configuration dump, its drain) is added by that program. Metrics and readiness may stand on
//! the network; the log level and everything else that changes or reveals state belongs on the admin Unix socket.

use hyper::StatusCode;
use hyper::header::ACCEPT;

use crate::http::{Reply, Request, Routes};
use crate::logs::Logs;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// The content types of [`Metrics::encode`], by what the reader asked for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /metrics` and `GET /stats/prometheus`.
pub fn metrics_routes(metrics: &Metrics) -> Routes {
    let (one, two) = (metrics.clone(), metrics.clone());
    Routes::new().get("/metrics", "metrics for Prometheus", move |request| scrape(one.clone(), request)).get(
        "/stats/prometheus",
        "the same",
        move |request| scrape(two.clone(), request),
    )
}

/// `GET /healthz/ready`: 200 `ready`, or 503 with the names of what is pending.
pub fn readiness_routes(readiness: &Readiness) -> Routes {
    let readiness = readiness.clone();
    Routes::new().get("/healthz/ready", "whether every part is ready", move |_| {
        let pending = readiness.pending();
        async move {
            if pending.is_empty() {
                Reply::text("ready\n")
            } else {
                Reply::text(format!("not ready, pending: {}\n", pending.join(", ")))
                    .with_status(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    })
}

/// `GET /logging` shows the log filter; `POST /logging?level=info,hbone=debug` sets it, `POST /logging?reset` restores the one
/// of the start.
pub fn logging_routes(logs: &Logs) -> Routes {
    let (shown, changed, at_start) = (logs.clone(), logs.clone(), logs.filter());
    Routes::new()
        .get("/logging", "the log filter", move |_| {
            let text = format!("{}\n", shown.filter());
            async move { Reply::text(text) }
        })
        .post("/logging", "?level=<filter> sets the log filter, ?reset restores it", move |request| {
            let reply = set_filter(&changed, &at_start, &request);
            async move { reply }
        })
}

async fn scrape(metrics: Metrics, request: Request) -> Reply {
    let accept = request.headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let content_type = if accept.contains("openmetrics") { OPEN_METRICS } else { PROMETHEUS };
    // With many series this takes a while: off the threads that drive other tasks.
    match tokio::task::spawn_blocking(move || metrics.encode()).await {
        Ok(text) => Reply::text(text).with_content_type(content_type),
        Err(error) => Reply::text(format!("cannot encode the metrics: {error}\n"))
            .with_status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn set_filter(logs: &Logs, at_start: &str, request: &Request) -> Reply {
    let wanted = request.param("level").or_else(|| request.param("reset").map(|_| at_start.to_owned()));
    match wanted.map(|filter| logs.set_filter(&filter)) {
        // The peer's tools ask for the level with a POST that names none.
        None | Some(Ok(())) => Reply::text(format!("{}\n", logs.filter())),
        Some(Err(error)) => Reply::text(format!("{error}\n")).with_status(StatusCode::BAD_REQUEST),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Format;
    use hyper::{HeaderMap, Method};

    async fn ask(routes: &Routes, method: Method, target: &str, accept: &'static str) -> Reply {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        let request = Request {
            method,
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            body: hyper::body::Bytes::new(),
        };
        routes.answer(request).await
    }

    #[tokio::test]
    async fn metrics_have_the_content_type_that_was_asked_for() {
        let metrics = Metrics::new();
        metrics.register_gauge_fn("airglow_up", "Up", || 1);
        let routes = metrics_routes(&metrics);
        let plain = ask(&routes, Method::GET, "/metrics", "*/*").await;
        assert_eq!(plain.content_type, PROMETHEUS);
        assert!(plain.body.starts_with(b"# HELP airglow_up Up.\n"));
        let open = ask(&routes, Method::GET, "/stats/prometheus", "application/openmetrics-text").await;
        assert_eq!((open.content_type, open.body), (OPEN_METRICS, plain.body));
    }

    #[tokio::test]
    async fn readiness_names_what_is_pending() {
        let readiness = Readiness::new();
        let routes = readiness_routes(&readiness);
        let ask = || ask(&routes, Method::GET, "/healthz/ready", "*/*");
        let latches = (readiness.latch("discovery"), readiness.latch("capture"));
        let reply = ask().await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(reply.body, "not ready, pending: capture, discovery\n");
        drop(latches);
        let reply = ask().await;
        assert_eq!((reply.status, &reply.body[..]), (StatusCode::OK, &b"ready\n"[..]));
    }

    #[tokio::test]
    async fn the_log_level_is_set_by_post_only() {
        let (_alive, logs) = crate::logs::build(Format::Plain, "info", std::io::sink()).unwrap();
        let routes = logging_routes(&logs);
        let text = async |method, target| {
            let reply = ask(&routes, method, target, "*/*").await;
            (reply.status.as_u16(), String::from_utf8(reply.body.to_vec()).unwrap())
        };
        assert_eq!(text(Method::GET, "/logging?level=debug").await, (200, "info\n".into()));
        assert_eq!(text(Method::POST, "/logging?level=debug").await, (200, "debug\n".into()));
        assert_eq!(text(Method::POST, "/logging?level=%3D%3D").await.0, 400);
        assert_eq!(text(Method::POST, "/logging").await, (200, "debug\n".into()));
        assert_eq!(text(Method::POST, "/logging?reset").await, (200, "info\n".into()));
    }
}
