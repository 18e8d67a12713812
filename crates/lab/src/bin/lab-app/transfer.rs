//! Clients that check what a connection does to their bytes and to its ends.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::pattern;
use crate::tcp::read_to_end;

#[derive(Args)]
pub(crate) struct Send {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    #[arg(long)]
    bytes: u64,
    /// The most that is written at once; 1 makes a packet of each byte.
    #[arg(long, default_value_t = 65_521)]
    chunk: u64,
}

#[derive(Args)]
pub(crate) struct Receive {
    /// Name or address, and port.
    #[arg(long)]
    from: String,
    /// How much must arrive.
    #[arg(long)]
    bytes: u64,
}

#[derive(Args)]
pub(crate) struct LateSend {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    #[arg(long)]
    bytes: u64,
}

#[derive(Args)]
pub(crate) struct Greeted {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    /// The greeting that must come.
    #[arg(long, default_value = "hello")]
    text: String,
}

pub(crate) async fn send(args: Send) -> Result<()> {
    let began = Instant::now();
    let mut stream = connect(&args.to).await?;
    write_pattern(&mut stream, args.bytes, args.chunk).await?;
    stream.shutdown().await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.context("read the answer after the end of our direction")?;
    let reply: Value = serde_json::from_str(&reply).with_context(|| format!("the answer {reply:?}"))?;
    let expected = json!({"bytes": args.bytes, "sha256": pattern::checksum(args.bytes)});
    ensure!(reply == expected, "the other end got {reply}, not {expected}");
    done(args.bytes, began);
    Ok(())
}

pub(crate) async fn receive(args: Receive) -> Result<()> {
    let began = Instant::now();
    let mut stream = connect(&args.from).await?;
    let got = read_to_end(&mut stream).await.context("read the pattern")?;
    let expected = (args.bytes, pattern::checksum(args.bytes));
    ensure!(got == expected, "{got:?} arrived, not {expected:?}");
    done(args.bytes, began);
    Ok(())
}

pub(crate) async fn late_send(args: LateSend) -> Result<()> {
    let began = Instant::now();
    let mut stream = connect(&args.to).await?;
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await.context("read to the end of the other direction")?;
    ensure!(greeting == "hello\n", "the greeting was {greeting:?}");
    write_pattern(&mut stream, args.bytes, args.bytes).await.context("send after the other end has ended")?;
    stream.shutdown().await?;
    done(args.bytes, began);
    Ok(())
}

pub(crate) async fn greeted(args: Greeted) -> Result<()> {
    let began = Instant::now();
    let mut stream = BufReader::new(connect(&args.to).await?);
    let mut line = String::new();
    stream.read_line(&mut line).await.context("wait for the greeting")?;
    ensure!(line.trim_end() == args.text, "the greeting was {line:?}");
    stream.write_all(b"and hello to you\n").await?;
    line.clear();
    stream.read_line(&mut line).await.context("wait for the echo")?;
    ensure!(line == "and hello to you\n", "the echo was {line:?}");
    done(line.len() as u64, began);
    Ok(())
}

pub(crate) async fn connect(to: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn write_pattern(stream: &mut TcpStream, bytes: u64, chunk: u64) -> Result<()> {
    let mut sent = 0;
    while sent < bytes {
        let part = pattern::at(sent, chunk.min(bytes - sent));
        sent += stream.write(part).await.with_context(|| format!("write after {sent} bytes"))? as u64;
    }
    Ok(())
}

pub(crate) fn done(bytes: u64, began: Instant) {
    println!("{}", json!({"ok": true, "bytes": bytes, "seconds": began.elapsed().as_secs_f64()}));
}
