//! HTTP/1.1 as far as the bench needs it: what its own client and server say, and nothing else. Whatever else comes is a failure.

use std::io;
use std::rc::Rc;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::message::{
    self, BODY_MAX, BYTES_HEADER, FIELDS, NUMBER_HEADER, PATH, Pattern, RULE, SECRET, WEIGHTS,
};

/// Heads end well below this.
const HEAD_MAX: usize = 16 * 1024;

/// A connection of the client.
pub(crate) struct Caller<Io> {
    io: Io,
    pattern: Rc<Pattern>,
    wanted: Wanted,
    mark: String,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Lengths of bodies; without one for the request it is a GET.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) request: Option<usize>,
    pub(crate) answer: usize,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Caller<Io> {
    pub(crate) fn new(io: Io, pattern: &Rc<Pattern>, (wanted, mark): (Wanted, &str)) -> Self {
        let (pattern, mark) = (Rc::clone(pattern), mark.to_owned());
        Self { io, pattern, wanted, mark, input: Vec::new(), output: Vec::new() }
    }

    /// One request and its answer, which has to be the right one.
    pub(crate) async fn call(&mut self, number: u64) -> anyhow::Result<()> {
        let digits = message::digits(number);
        self.write_request(&digits);
        self.io.write_all(&self.output).await.context("send a request")?;
        self.input.clear();
        let head = read_head(&mut self.io, &mut self.input).await.context("read an answer")?;
        let head = head.context("the connection was closed instead of an answer")?;
        let text = &self.input[..head];
        ensure!(text.starts_with(b"HTTP/1.1 200 "), "answered with {}", String::from_utf8_lossy(text));
        ensure!(self.is_marked(&self.mark), "no route was followed: {}", String::from_utf8_lossy(text));
        let length = field(text, "content-length").and_then(message::length);
        ensure!(length == Some(self.wanted.answer), "of wrong length: {}", String::from_utf8_lossy(text));
        read_to(&mut self.io, &mut self.input, head + self.wanted.answer).await.context("read a body")?;
        self.pattern.check(&digits, self.wanted.answer, &self.input[head..])
    }

    /// Whether the last answer bears this mark of the routes.
    pub(crate) fn is_marked(&self, mark: &str) -> bool {
        field(&self.input, WEIGHTS.0) == Some(mark.as_bytes())
    }

    fn write_request(&mut self, digits: &[u8]) {
        let out = &mut self.output;
        out.clear();
        let method = if self.wanted.request.is_some() { "POST" } else { "GET" };
        let mut add = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        add(&[method.as_bytes(), b" ", PATH.as_bytes(), b" HTTP/1.1\r\nhost: server.shop\r\n"]);
        for (name, value) in FIELDS {
            add(&[name.as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
        }
        add(&[BYTES_HEADER.as_bytes(), b": ", self.wanted.answer.to_string().as_bytes(), b"\r\n"]);
        add(&[NUMBER_HEADER.as_bytes(), b": ", digits, b"\r\n"]);
        if let Some(length) = self.wanted.request {
            add(&[b"content-length: ", length.to_string().as_bytes(), b"\r\n\r\n"]);
            self.pattern.append(digits, length, out);
        } else {
            add(&[b"\r\n"]);
        }
    }
}

/// Answers the requests of one connection until it ends.
pub(crate) async fn serve<Io>(mut io: Io, pattern: &Pattern) -> anyhow::Result<()>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let (mut input, mut output) = (Vec::new(), Vec::new());
    while let Some(head) = read_head(&mut io, &mut input).await? {
        let text = &input[..head];
        let number = field(text, NUMBER_HEADER).context("a request without a number")?;
        let bytes = field(text, BYTES_HEADER).and_then(message::length).context("no length")?;
        let followed = field(text, RULE.0) == Some(RULE.1.as_bytes()) && field(text, SECRET).is_none();
        ensure!(followed, "no route was followed: {}", String::from_utf8_lossy(text));
        let sent = field(text, "content-length").and_then(message::length).unwrap_or(0);
        output.clear();
        let line = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: bench\r\nx-served-by: one\r\ncontent-length: {bytes}\r\n\r\n"
        );
        output.extend_from_slice(line.as_bytes());
        pattern.append(number, bytes, &mut output);
        let number = number.to_vec();
        read_to(&mut io, &mut input, head + sent).await?;
        if sent > 0 {
            pattern.check(&number, sent, &input[head..]).context("a request's body")?;
        }
        io.write_all(&output).await?;
        input.clear();
    }
    Ok(())
}

/// Reads up to the end of a head and says where that is; what was read beyond it stays in `input`. `None` when the peer ends
/// the connection first.
async fn read_head(io: &mut (impl AsyncRead + Unpin), input: &mut Vec<u8>) -> anyhow::Result<Option<usize>> {
    loop {
        if let Some(at) = find(input, b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        ensure!(input.len() < HEAD_MAX, "a head without an end");
        match io.read_buf(input).await? {
            0 if input.is_empty() => return Ok(None),
            0 => bail!("it ended in the middle of a head"),
            _ => {}
        }
    }
}

/// Reads until `input` holds exactly so many bytes: nobody sends ahead.
async fn read_to(
    io: &mut (impl AsyncRead + Unpin),
    input: &mut Vec<u8>,
    length: usize,
) -> anyhow::Result<()> {
    input.reserve(length.min(BODY_MAX + HEAD_MAX).saturating_sub(input.len()));
    while input.len() < length {
        if io.read_buf(input).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
    ensure!(input.len() == length, "{} bytes too many", input.len() - length);
    Ok(())
}

/// The value of a field, whose name is compared without case.
fn field<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (before, after) = line.split_at_checked(name.len())?;
        let value = after.strip_prefix(b":")?;
        before.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
    })
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name_alone() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length:  12\r\nx-content-length: 13\r\n\r\n";
        assert_eq!(field(head, "content-length"), Some(&b"12"[..]));
        assert_eq!(field(head, "x-number"), None);
    }
}
