//! One HTTP request, on a new connection or on one that was kept.

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Answers of the shop have a few hundred bytes per service involved.
const ANSWER_MAX: usize = 1 << 20;

/// An open connection.
pub(crate) type Kept = SendRequest<Full<Bytes>>;

/// Where requests go.
#[derive(Clone, Debug)]
pub(crate) struct Url {
    /// Host and port, as in the Host header.
    authority: String,
    address: String,
    path: String,
}

impl Url {
    /// The host, for messages.
    pub(crate) fn host(&self) -> &str {
        &self.authority
    }
}

impl std::str::FromStr for Url {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let uri: Uri = text.parse().with_context(|| format!("{text:?} is not a URL"))?;
        ensure!(uri.scheme_str() == Some("http"), "{text:?} must begin with http://");
        let Some(authority) = uri.authority() else { bail!("{text:?} has no host") };
        let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
        Ok(Self { authority: authority.to_string(), address, path: uri.path().to_owned() })
    }
}

/// Opens a connection.
pub(crate) async fn connect(url: &Url) -> Result<Kept> {
    let stream = TcpStream::connect(&url.address).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("speak HTTP")?;
    tokio::spawn(async move {
        // What breaks the connection is reported by the request on it.
        drop(connection.await);
    });
    Ok(sender)
}

/// A header of requests, written `name: value`.
#[derive(Clone, Debug)]
pub(crate) struct Header(HeaderName, HeaderValue);

impl std::str::FromStr for Header {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, value) =
            text.split_once(": ").with_context(|| format!("{text:?} is not `name: value`"))?;
        Ok(Self(name.parse()?, value.parse()?))
    }
}

/// Sends one request and reads the answer, which must have status 200. `keep` leaves the connection open.
pub(crate) async fn ask(
    connection: &mut Kept,
    url: &Url,
    (headers, body): (&[Header], &str),
    keep: bool,
) -> Result<Bytes> {
    let mut request = Request::builder().method(Method::POST).uri(&url.path).header(HOST, &url.authority);
    for Header(name, value) in headers {
        request = request.header(name, value);
    }
    if !keep {
        request = request.header(CONNECTION, "close");
    }
    let request = request.body(Full::from(body.to_owned())).context("make a request")?;
    connection.ready().await.context("connection")?;
    let answer = connection.send_request(request).await.context("no answer")?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed).context("read the answer")?.to_bytes();
    ensure!(status == StatusCode::OK, "status {status}: {}", String::from_utf8_lossy(&body).trim_end());
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_a_port_even_when_none_is_written() {
        let check = |text: &str, expected: Option<(&str, &str)>| {
            let url = text.parse::<Url>().ok();
            let found = url.as_ref().map(|url| (url.address.as_str(), url.path.as_str()));
            assert_eq!(found, expected, "{text}");
        };
        check("http://cart/", Some(("cart:80", "/")));
        check("http://10.0.0.1:8080/x", Some(("10.0.0.1:8080", "/x")));
        check("http://[fd00::1]:8080", Some(("[fd00::1]:8080", "/")));
        check("https://cart/", None);
        check("cart", None);
    }
}
