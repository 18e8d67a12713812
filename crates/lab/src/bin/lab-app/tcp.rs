//! Plain TCP servers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::Listen;
use crate::pattern::{self, Sum};

/// As much as one read takes; large, as the mesh's own buffers are.
pub(crate) const BUFFER: usize = 256 << 10;

#[derive(Args)]
pub(crate) struct Banner {
    #[command(flatten)]
    listen: Listen,
    /// What the server says first; a line break is added.
    #[arg(long, default_value = "hello")]
    text: String,
}

#[derive(Args)]
pub(crate) struct Source {
    #[command(flatten)]
    listen: Listen,
    /// How much each client gets.
    #[arg(long)]
    bytes: u64,
}

pub(crate) async fn echo(args: Listen) -> Result<()> {
    serve(args, |stream, _| echo_one(stream)).await
}

pub(crate) async fn banner(args: Banner) -> Result<()> {
    let greeting = format!("{}\n", args.text);
    serve(args.listen, move |mut stream, _| {
        let greeting = greeting.clone();
        async move {
            stream.write_all(greeting.as_bytes()).await?;
            echo_one(stream).await
        }
    })
    .await
}

pub(crate) async fn sink(args: Listen) -> Result<()> {
    serve(args, |mut stream, _| async move {
        let (bytes, sha256) = read_to_end(&mut stream).await?;
        stream.write_all(format!("{}\n", json!({"bytes": bytes, "sha256": sha256})).as_bytes()).await?;
        stream.shutdown().await
    })
    .await
}

pub(crate) async fn source(args: Source) -> Result<()> {
    let bytes = args.bytes;
    serve(args.listen, move |mut stream, _| async move {
        let mut done = 0;
        while done < bytes {
            done += stream.write(pattern::at(done, bytes - done)).await? as u64;
        }
        stream.shutdown().await?;
        // Closing with unread input would reset the connection and might cost the client the end of the pattern.
        read_to_end(&mut stream).await.map(drop)
    })
    .await
}

pub(crate) async fn early_fin(args: Listen) -> Result<()> {
    serve(args, |mut stream, client| async move {
        stream.write_all(b"hello\n").await?;
        stream.shutdown().await?;
        let (bytes, sha256) = read_to_end(&mut stream).await?;
        println!("{}", json!({"client": client, "bytes": bytes, "sha256": sha256}));
        Ok(())
    })
    .await
}

/// Accepts for ever and gives each connection a task of its own.
pub(crate) async fn serve<F, R>(args: Listen, handle: F) -> Result<()>
where
    F: Fn(TcpStream, SocketAddr) -> R,
    R: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener =
        TcpListener::bind(args.listen).await.with_context(|| format!("listen on {}", args.listen))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, client) = listener.accept().await?;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        stream.set_nodelay(true)?;
        if args.log {
            println!("{}", json!({"client": client}));
        }
        let handled = handle(stream, client);
        tokio::spawn(async move {
            if let Err(error) = handled.await {
                eprintln!("{client}: {error}");
            }
        });
    }
}

pub(crate) async fn read_to_end(stream: &mut TcpStream) -> io::Result<(u64, String)> {
    let (mut sum, mut buffer) = (Sum::new(), vec![0; BUFFER]);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(sum.finish()),
            length => sum.add(&buffer[..length]),
        }
    }
}

async fn echo_one(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}
