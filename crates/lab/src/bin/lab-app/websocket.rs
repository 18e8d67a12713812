//! WebSocket (RFC 6455) echo, server and client: the upgrade with its real handshake, then masked text and binary frames.
//! No fragments and no extensions: a frame is a message.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::{Hold, OPENING};
use crate::transfer::connect;
use crate::{Listen, pattern, tcp};

/// The constant of RFC 6455 section 1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The longest message; the length of a frame is the peer's word.
const MAX_MESSAGE: u64 = 16 << 20;

/// Lines of a request or response head; browsers send some twenty.
const MAX_HEAD_LINES: usize = 100;

const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

#[derive(Args)]
pub(crate) struct Client {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    #[arg(long, default_value_t = 10)]
    messages: u64,
    /// Bytes of each message.
    #[arg(long, default_value_t = 1000)]
    size: u64,
}

pub(crate) async fn serve(args: Listen) -> Result<()> {
    tcp::serve(args, |stream, _| async move { echo(stream).await.map_err(io::Error::other) }).await
}

pub(crate) async fn client(args: Client) -> Result<()> {
    let mut stream = open(&args.to).await?;
    for number in 0..args.messages {
        say(&mut stream, pattern::at(number, args.size))
            .await
            .with_context(|| format!("message {number}"))?;
    }
    close(&mut stream).await?;
    println!("{}", json!({"ok": true, "messages": args.messages}));
    Ok(())
}

/// Opens them and uses each; at SIGTERM each is used once more and closed in good order.
pub(crate) async fn hold(args: Hold) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut held = Vec::new();
    while held.len() < args.connections {
        let opening = (0..OPENING.min(args.connections - held.len())).map(|_| {
            let to = args.to.clone();
            async move {
                let mut stream = open(&to).await?;
                say(&mut stream, b"first").await.map(|()| stream)
            }
        });
        for opened in opening.collect::<JoinSet<_>>().join_all().await {
            let so_far = held.len();
            held.push(opened.with_context(|| format!("connection {so_far}"))?);
        }
    }
    println!("holding {}", held.len());
    terminate.recv().await;
    let number = held.len();
    let mut errors = BTreeMap::<String, u64>::new();
    let mut held = held.into_iter().peekable();
    while held.peek().is_some() {
        let last = held.by_ref().take(OPENING).map(|mut stream| async move {
            say(&mut stream, b"still here?").await?;
            close(&mut stream).await
        });
        let last = last.map(|last| timeout(Duration::from_secs(10), last));
        for checked in last.collect::<JoinSet<_>>().join_all().await {
            if let Err(error) = checked.unwrap_or_else(|_| bail!("no answer within 10 s")) {
                *errors.entry(format!("{error:#}")).or_default() += 1;
            }
        }
    }
    println!("{}", json!({"held": number, "errors": errors}));
    ensure!(errors.is_empty(), "some connections were lost");
    Ok(())
}

/// An upgraded connection.
async fn open(to: &str) -> Result<BufReader<TcpStream>> {
    let mut stream = BufReader::new(connect(to).await?);
    let nonce: Vec<u8> = (0..16).map(|_| fastrand::u8(..)).collect();
    let key = base64(&nonce);
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n",
        to
    );
    stream.write_all(request.as_bytes()).await?;
    let head = read_head(&mut stream).await?;
    ensure!(head[0].starts_with("HTTP/1.1 101"), "the upgrade was answered with {:?}", head[0]);
    let accepted = header(&head, "sec-websocket-accept").context("an answer without Sec-WebSocket-Accept")?;
    ensure!(accepted == accept_key(&key), "Sec-WebSocket-Accept is {accepted:?}");
    Ok(stream)
}

/// Sends a message, which has to come back.
async fn say(stream: &mut BufReader<TcpStream>, message: &[u8]) -> Result<()> {
    write_frame(stream, 2, message, Some(fastrand::u32(..).to_be_bytes())).await?;
    let (kind, echoed) = read_frame(stream).await?;
    ensure!((kind, echoed.as_slice()) == (2, message), "the message came back changed");
    Ok(())
}

async fn close(stream: &mut BufReader<TcpStream>) -> Result<()> {
    write_frame(stream, CLOSE, &[], Some([1, 2, 3, 4])).await?;
    ensure!(read_frame(stream).await?.0 == CLOSE, "a close was not answered with a close");
    Ok(())
}

async fn echo(stream: TcpStream) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let head = read_head(&mut stream).await?;
    let Some(key) = header(&head, "sec-websocket-key") else {
        stream.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n").await?;
        return Ok(());
    };
    let response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        accept_key(key)
    );
    stream.write_all(response.as_bytes()).await?;
    loop {
        let (kind, message) = read_frame(&mut stream).await?;
        let reply = if kind == PING { PONG } else { kind };
        write_frame(&mut stream, reply, &message, None).await?;
        if kind == CLOSE {
            return Ok(stream.shutdown().await?);
        }
    }
}

async fn read_head(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    while lines.len() < MAX_HEAD_LINES {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end() {
            "" if lines.is_empty() => bail!("the connection ended before the head"),
            "" => return Ok(lines),
            text => lines.push(text.to_owned()),
        }
    }
    bail!("a head of more than {MAX_HEAD_LINES} lines")
}

fn header<'a>(head: &'a [String], name: &str) -> Option<&'a str> {
    let named = |line: &'a String| line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name));
    head.iter().find_map(named).map(|(_, value)| value.trim())
}

/// The kind and the unmasked payload of the next frame.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await?;
    let second = stream.read_u8().await?;
    ensure!(first & 0xf0 == 0x80, "a fragment, or an extension that was not agreed on");
    let length = match second & 0x7f {
        126 => stream.read_u16().await?.into(),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    ensure!(length <= MAX_MESSAGE, "a message of {length} bytes");
    let mut mask = [0; 4];
    if second & 0x80 != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut payload).await?;
    apply(mask, &mut payload);
    Ok((first & 0xf, payload))
}

async fn write_frame(
    stream: &mut BufReader<TcpStream>,
    kind: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<()> {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    let mut frame = vec![0x80 | kind];
    match u16::try_from(payload.len()) {
        Ok(length @ 0..126) => frame.push(masked | u8::try_from(length)?),
        Ok(length) => {
            frame.push(masked | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(masked | 127);
            frame.extend((payload.len() as u64).to_be_bytes());
        }
    }
    frame.extend(mask.iter().flatten());
    let start = frame.len();
    frame.extend(payload);
    apply(mask.unwrap_or_default(), &mut frame[start..]);
    Ok(stream.write_all(&frame).await?)
}

fn apply(mask: [u8; 4], payload: &mut [u8]) {
    for (byte, mask) in payload.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

fn accept_key(key: &str) -> String {
    base64(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()).as_ref())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = (0..3).fold(0, |group, i| group << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) & 0x3f;
            text.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[value as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_of_the_standard_is_ours() {
        assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn base64_pads() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
