//! The server behind the proxies: HTTP/1.1 and HTTP/2, plainly and at the end of tunnels.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context as _;
use hbone::ServerLimits;
use http::HeaderMap;
use identity::Certificate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::message::Pattern;
use super::tunnelled::Tunnelled;
use super::{http1, http2};
use crate::waypoint::certificates;

/// Where it speaks HTTP/1.1, and HTTP/2.
pub(crate) const HTTP1_PORT: u16 = 8080;
pub(crate) const HTTP2_PORT: u16 = 8082;
/// Where it accepts tunnels.
pub(crate) const HBONE_PORT: u16 = 15008;

/// What it proves to be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where it listens
    #[arg(long)]
    ip: IpAddr,
    /// The directory with its certificate
    #[arg(long)]
    certificate: PathBuf,
}

/// Serves until it is killed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let certificate = Arc::new(certificates::read(&args.certificate)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, serve(args.ip, certificate))
}

async fn serve(ip: IpAddr, certificate: Arc<Certificate>) -> anyhow::Result<()> {
    let pattern = Rc::new(Pattern::new());
    let [one, two, tunnels] =
        [HTTP1_PORT, HTTP2_PORT, HBONE_PORT].map(|port| listen(SocketAddr::new(ip, port)));
    let (one, two, tunnels) = (one.await?, two.await?, tunnels.await?);
    println!("serving");
    loop {
        let pattern = Rc::clone(&pattern);
        tokio::select! {
            accepted = one.accept() => {
                let (tcp, _) = accepted?;
                tcp.set_nodelay(true)?;
                spawn_local(answer(tcp, HTTP1_PORT, pattern));
            }
            accepted = two.accept() => {
                let (tcp, _) = accepted?;
                tcp.set_nodelay(true)?;
                spawn_local(answer(tcp, HTTP2_PORT, pattern));
            }
            accepted = tunnels.accept() => {
                let (tcp, _) = accepted?;
                let certificate = Arc::clone(&certificate);
                spawn_local(async move { told(tunnel(tcp, &certificate, &pattern).await) });
            }
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

async fn tunnel(tcp: TcpStream, certificate: &Certificate, pattern: &Rc<Pattern>) -> anyhow::Result<()> {
    hbone::socket::prepare(&tcp)?;
    let (mut tunnel, _) = hbone::accept(tcp, certificate.server_config(), &ServerLimits::default()).await?;
    while let Some(incoming) = tunnel.next().await {
        let incoming = incoming?;
        let port = incoming.authority.port_u16().context("an authority without a port")?;
        let stream = incoming.accept(HeaderMap::new())?;
        spawn_local(answer(Tunnelled::new(stream), port, Rc::clone(pattern)));
    }
    Ok(())
}

async fn answer<Io>(io: Io, port: u16, pattern: Rc<Pattern>)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    told(match port {
        HTTP2_PORT => http2::serve(io, &pattern).await,
        _ => http1::serve(io, &pattern).await,
    });
}

/// The client sees what is missing; this says why.
fn told(outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        eprintln!("origin: {error:#}");
    }
}
