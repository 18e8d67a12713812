//! What is asked of an admin server, and its answer: one GET, bounded in size and time. Over a socket of this machine here;
//! others bring the bytes themselves.
//!
//! HTTP/1.1 as far as our own admin server speaks it (Content-Length, or until the end of the connection). Blocks; changes
//! nothing.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

/// A node with 100,000 workloads dumps some 100 MB; more than this is not an answer of ours.
const ANSWER_MAX: u64 = 512 << 20;

/// Our admin server gives its handlers 30 s.
const ANSWER_WITHIN: Duration = Duration::from_secs(35);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    /// Nobody answers, or not to the end.
    #[error("can't ask {place} for {path}: {why}")]
    Unreachable {
        /// The socket, or the pod.
        place: String,
        /// What was asked for.
        path: String,
        /// The kernel's answer, or the API server's.
        why: String,
    },
    /// It answered with another status than 200.
    #[error("{place} answers {path} with status {status}: {body}")]
    Status {
        /// The socket, or the pod.
        place: String,
        /// What was asked for.
        path: String,
        /// The status code.
        status: u16,
        /// Its words.
        body: String,
    },
    /// What it said cannot be understood.
    #[error(
        "{place} answers {path} in a form that this airglow does not know ({reason}); is it as old as what it asks?"
    )]
    Garbled {
        /// The socket, or the pod.
        place: String,
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl AdminError {
    /// Nobody answers.
    pub(crate) fn unreachable(place: impl ToString, path: &str, why: impl ToString) -> Self {
        Self::Unreachable { place: place.to_string(), path: path.to_owned(), why: why.to_string() }
    }

    /// Whether what was asked for is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: 404, .. })
    }
}

/// The body of `GET path` at a socket.
pub(crate) fn get(socket: &Path, path: &str) -> Result<String, AdminError> {
    let place = socket.display().to_string();
    match exchange(socket, path) {
        Ok(answer) => body(&place, path, &answer),
        Err(error) => Err(AdminError::unreachable(place, path, format!("{error}{}", hint(&error)))),
    }
}

/// The body of `GET path` at a socket, which is JSON.
pub(crate) fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AdminError> {
    read(&socket.display().to_string(), path, &get(socket, path)?)
}

/// What is sent to ask for `path`.
pub(crate) fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").into_bytes()
}

/// Whether an answer has come to its end.
pub(crate) fn is_whole(answer: &[u8]) -> bool {
    let has_length =
        |head: &[u8]| head.to_ascii_lowercase().windows(15).any(|part| part == b"content-length:");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    end.is_some_and(|end| has_length(&answer[..end + 2]) && parse(answer).is_ok())
}

/// The body of a whole answer to `GET path`, if its status is 200.
pub(crate) fn body(place: &str, path: &str, answer: &[u8]) -> Result<String, AdminError> {
    let garbled =
        |reason: String| AdminError::Garbled { place: place.to_owned(), path: path.to_owned(), reason };
    let (status, body) = parse(answer).map_err(garbled)?;
    let body = String::from_utf8(body.to_vec()).map_err(|error| garbled(error.to_string()))?;
    if status == 200 {
        return Ok(body);
    }
    let body = body.trim_end().to_owned();
    Err(AdminError::Status { place: place.to_owned(), path: path.to_owned(), status, body })
}

/// A body that is JSON.
pub(crate) fn read<T: DeserializeOwned>(place: &str, path: &str, body: &str) -> Result<T, AdminError> {
    serde_json::from_str(body).map_err(|error| AdminError::Garbled {
        place: place.to_owned(),
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

/// `text` as the value of a query's parameter.
pub(crate) fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn exchange(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    stream.write_all(&request(path))?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Status and body of a whole answer.
fn parse(answer: &[u8]) -> Result<(u16, &[u8]), String> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or("no end of its head")?;
    let head = std::str::from_utf8(&answer[..end]).map_err(|error| error.to_string())?;
    let body = &answer[end + 4..];
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status =
        first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| format!("it begins with {first:?}"))?;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.trim().parse::<usize>().map_err(|error| format!("Content-Length: {error}"))?;
            if length != body.len() {
                return Err(format!("{} bytes of {length}", body.len()));
            }
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(format!("a body in the encoding {value}"));
        }
    }
    Ok((status, body))
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::ConnectionRefused {
        " (no ztunnel runs there)"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        " (the socket is root's)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answer: &str, expected: Result<(u16, &str), &str>) {
        let found =
            parse(answer.as_bytes()).map(|(status, body)| (status, std::str::from_utf8(body).unwrap()));
        match (found, expected) {
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
            (found, expected) => assert_eq!(found.as_ref().ok(), expected.as_ref().ok(), "{answer:?}"),
        }
    }

    #[test]
    fn answers_are_read_to_their_end() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", Ok((200, "hi")));
        check("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready", Ok((503, "not ready")));
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok((200, "")));
    }

    #[test]
    fn answers_that_are_cut_off_or_foreign_are_refused() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", Err("2 bytes of 3"));
        check("HTTP/1.1 200 OK\r\nContent-Le", Err("no end"));
        check("SSH-2.0\r\n\r\n", Err("begins with"));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", Err("encoding"));
        check("", Err("no end"));
    }

    #[test]
    fn an_answer_is_whole_when_its_length_is_there() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert!(is_whole(whole.as_bytes()));
        for part in 0..whole.len() {
            assert!(!is_whole(&whole.as_bytes()[..part]), "{part}");
        }
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n\r\nhi"), "nobody knows yet");
    }

    #[test]
    fn parameters_are_encoded() {
        assert_eq!(encode("spiffe://a/b c&d=[::1]:80"), "spiffe://a/b%20c%26d%3D%5B::1%5D:80");
    }

    #[test]
    fn nobody_there_is_said_with_the_socket() {
        let error = get(Path::new("/none/admin.sock"), "/pods").unwrap_err().to_string();
        assert!(error.contains("/none/admin.sock") && error.contains("/pods"), "{error}");
    }
}
