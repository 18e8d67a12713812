//! Asking a ztunnel over its admin socket: one GET, one answer, bounded in size and time.
//!
//! HTTP/1.1 as far as our own admin server speaks it (Content-Length, or until the end of the connection). Blocks; changes
//! nothing.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
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
    #[error("can't ask {} for {path}: {error}{}", socket.display(), hint(error))]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What was asked for.
        path: String,
        /// The kernel's answer.
        error: io::Error,
    },
    /// It answered with another status than 200.
    #[error("{} answers {path} with status {status}: {body}", socket.display())]
    Status {
        /// The socket.
        socket: PathBuf,
        /// What was asked for.
        path: String,
        /// The status code.
        status: u16,
        /// Its words.
        body: String,
    },
    /// What it said cannot be understood.
    #[error("{} answers {path} in a form that this airglow does not know ({reason}); is it as old as the ztunnel?", socket.display())]
    Garbled {
        /// The socket.
        socket: PathBuf,
        /// What was asked for.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// The body of `GET path`.
pub(crate) fn get(socket: &Path, path: &str) -> Result<String, AdminError> {
    let answer = exchange(socket, path).map_err(|error| AdminError::Unreachable {
        socket: socket.to_owned(),
        path: path.to_owned(),
        error,
    })?;
    let garbled =
        |reason: String| AdminError::Garbled { socket: socket.to_owned(), path: path.to_owned(), reason };
    let (status, body) = parse(&answer).map_err(garbled)?;
    let body = String::from_utf8(body.to_vec()).map_err(|error| garbled(error.to_string()))?;
    if status == 200 {
        return Ok(body);
    }
    let body = body.trim_end().to_owned();
    Err(AdminError::Status { socket: socket.to_owned(), path: path.to_owned(), status, body })
}

/// The body of `GET path`, which is JSON.
pub(crate) fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AdminError> {
    serde_json::from_str(&get(socket, path)?).map_err(|error| AdminError::Garbled {
        socket: socket.to_owned(),
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn exchange(socket: &Path, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    stream.set_write_timeout(Some(ANSWER_WITHIN))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
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
    fn nobody_there_is_said_with_the_socket() {
        let error = get(Path::new("/none/admin.sock"), "/pods").unwrap_err().to_string();
        assert!(error.contains("/none/admin.sock") && error.contains("/pods"), "{error}");
    }
}
