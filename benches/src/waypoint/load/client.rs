//! The client: connections or tunnels to a proxy, requests on all of them, and one line of JSON about a window of it.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use hbone::{ClientLimits, ClientTls, Connect, Opener};
use identity::Certificate;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;

use super::http1::{self, Wanted};
use super::http2;
use super::message::{Pattern, WEIGHTS};
use super::pace::Pace;
use super::tunnelled::Tunnelled;
use crate::load::Tally;
use crate::load::client::{Report, report};
use crate::load::meter::{self, Watched};
use crate::waypoint::certificates;

/// What to ask, through what, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The proxy
    #[arg(long)]
    proxy: SocketAddr,
    /// The address that connections come from
    #[arg(long)]
    from: IpAddr,
    /// What tunnels are asked to lead to; without it connections are plain
    #[arg(long, requires = "certificate")]
    authority: Option<String>,
    /// The directory with the client's certificate
    #[arg(long)]
    certificate: Option<PathBuf>,
    /// Connections, or tunnels
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Streams of each tunnel
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, value_enum, default_value_t = Protocol::Http1)]
    protocol: Protocol,
    /// Requests at once on each connection or stream (HTTP/2)
    #[arg(long, default_value_t = 1)]
    calls: usize,
    /// Bytes of each answer's body
    #[arg(long, default_value_t = 100)]
    answer: usize,
    /// Bytes of each request's body (HTTP/1.1)
    #[arg(long)]
    request: Option<usize>,
    /// Requests per second on a fixed schedule; as many as there are answers for when left out
    #[arg(long)]
    rate: Option<u32>,
    /// Requests of the schedule that are due at the same moment
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// Uses each connection once and holds it until this process is killed
    #[arg(long)]
    hold: bool,
    /// What the routes' mark in answers has to be
    #[arg(long, default_value = WEIGHTS.1)]
    mark: String,
    /// Asks until the mark is this one, and says when that was
    #[arg(long)]
    until: Option<String>,
    /// Milliseconds of load before the window
    #[arg(long, default_value_t = 0)]
    warm_ms: u64,
    /// Milliseconds of the window
    #[arg(long, default_value_t = 1000)]
    for_ms: u64,
    #[command(flatten)]
    watched: Watched,
}

/// What is spoken inside of connections and tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Protocol {
    Grpc,
    Http1,
    Http2,
}

/// Does what was asked for.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, load(args))
}

async fn load(args: &Args) -> anyhow::Result<()> {
    let (carriers, tunnels) = carriers(args).await?;
    let callers = callers(args, carriers).await?;
    if args.hold {
        return hold(callers, &tunnels).await;
    }
    if let Some(mark) = &args.until {
        return until(callers, mark).await;
    }
    let pace = args.rate.map(|rate| Pace::start(rate, args.burst)).transpose()?;
    let work = Rc::new(Work { pace, numbers: Cell::new(0), tally: RefCell::default() });
    for caller in callers {
        spawn_local(Rc::clone(&work).keep_up(caller));
    }
    sleep(Duration::from_millis(args.warm_ms)).await;
    let (before, own_before) = (meter::read(&args.watched)?, meter::read_own()?);
    let began = Instant::now();
    let warm = work.tally.take();
    sleep(Duration::from_millis(args.for_ms)).await;
    let mut tally = work.tally.take();
    let seconds = began.elapsed().as_secs_f64();
    let own_cpu = meter::read_own()? - own_before;
    // What failed before the window failed.
    tally.failed += warm.failed;
    tally.failure = warm.failure.or(tally.failure);
    let cpu = meter::read(&args.watched)?.since(before);
    println!("{}", serde_json::to_string(&Report { own_cpu, ..report(tally, seconds, cpu) })?);
    Ok(())
}

async fn hold(callers: Vec<Caller>, tunnels: &[Opener]) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(callers.len());
    for (mut caller, number) in callers.into_iter().zip(0..) {
        caller.call(number).await?;
        held.push(caller);
    }
    println!("holding {} tunnels and {} connections", tunnels.len(), held.len());
    std::future::pending().await
}

/// Asks over one connection until the routes' mark has changed to `mark`.
async fn until(callers: Vec<Caller>, mark: &str) -> anyhow::Result<()> {
    let Some(Caller::Http1(mut caller)) = callers.into_iter().next() else {
        bail!("it is HTTP/1.1 that is asked")
    };
    caller.call(0).await?;
    println!("asking");
    for number in 1.. {
        let outcome = caller.call(number).await;
        if outcome.is_err() && caller.is_marked(mark) {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            println!("followed at {}", now.as_micros());
            return Ok(());
        }
        outcome?;
    }
    bail!("requests have run out of numbers")
}

/// Bytes of either kind of connection.
pub(super) trait Carrier: AsyncRead + AsyncWrite + Unpin {}
impl<Io: AsyncRead + AsyncWrite + Unpin> Carrier for Io {}

enum Caller {
    Http1(Box<http1::Caller<Box<dyn Carrier>>>),
    Http2(Box<http2::Caller>),
}

impl Caller {
    async fn call(&mut self, number: u64) -> anyhow::Result<()> {
        match self {
            Self::Http1(caller) => caller.call(number).await,
            Self::Http2(caller) => caller.call(number).await,
        }
    }
}

/// Everybody who is going to ask.
async fn callers(args: &Args, carriers: Vec<Box<dyn Carrier>>) -> anyhow::Result<Vec<Caller>> {
    let pattern = Rc::new(Pattern::new());
    let mut callers = Vec::new();
    for io in carriers {
        if args.protocol == Protocol::Http1 {
            let wanted = Wanted { request: args.request, answer: args.answer };
            callers.push(Caller::Http1(Box::new(http1::Caller::new(io, &pattern, (wanted, &args.mark)))));
            continue;
        }
        let wanted = (args.answer, args.protocol == Protocol::Grpc, args.mark.as_str());
        let caller = http2::Caller::over(io, &pattern, wanted).await?;
        callers.extend((0..args.calls).map(|_| Caller::Http2(Box::new(caller.clone()))));
    }
    Ok(callers)
}

/// What they ask over, and the tunnels that it is in, which would end without their openers.
async fn carriers(args: &Args) -> anyhow::Result<(Vec<Box<dyn Carrier>>, Vec<Opener>)> {
    let (mut carriers, mut tunnels): (Vec<Box<dyn Carrier>>, _) = (Vec::new(), Vec::new());
    let certificate = args.certificate.as_deref().map(certificates::read).transpose()?;
    for _ in 0..args.connections {
        let tcp = dial((args.from, args.proxy)).await?;
        let (Some(authority), Some(certificate)) = (&args.authority, &certificate) else {
            carriers.push(Box::new(tcp));
            continue;
        };
        let opener = tunnel(tcp, certificate).await?;
        for _ in 0..args.streams {
            let connect = Connect { authority: authority.clone(), ..Connect::default() };
            let stream =
                opener.open(connect).await.with_context(|| format!("open a stream to {authority}"))?;
            carriers.push(Box::new(Tunnelled::new(stream)));
        }
        tunnels.push(opener);
    }
    Ok((carriers, tunnels))
}

/// A connection from this address to that.
pub(super) async fn dial((from, to): (IpAddr, SocketAddr)) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let tcp = socket.connect(to).await.context("connect to the proxy")?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// An orderly tunnel, as long as it has openers or streams.
pub(super) async fn tunnel(tcp: TcpStream, certificate: &Certificate) -> anyhow::Result<Opener> {
    hbone::socket::prepare(&tcp)?;
    let server_name = tcp.peer_addr()?.ip().into();
    let tls = ClientTls { config: certificate.client_config(), server_name };
    let (opener, driver, _) =
        hbone::connect(tcp, tls, &ClientLimits::default()).await.context("make a tunnel")?;
    spawn_local(driver);
    ensure!(!opener.is_closing(), "the tunnel was closed at once");
    Ok(opener)
}

/// What all callers share.
struct Work {
    pace: Option<Rc<Pace>>,
    numbers: Cell<u64>,
    tally: RefCell<Tally>,
}

impl Work {
    /// Asks again and again, until it fails.
    async fn keep_up(self: Rc<Self>, mut caller: Caller) {
        loop {
            let began = match &self.pace {
                Some(pace) => pace.next().await,
                None => Instant::now(),
            };
            let number = self.numbers.get();
            self.numbers.set(number + 1);
            let outcome = caller.call(number).await;
            let mut tally = self.tally.borrow_mut();
            match outcome {
                Ok(()) => tally.operation(began, Instant::now()),
                Err(error) => {
                    tally.failed += 1;
                    tally.failure.get_or_insert(format!("{error:#}"));
                    return;
                }
            }
        }
    }
}
