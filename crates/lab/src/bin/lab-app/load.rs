//! Many clients at once, and an account of everything that went wrong for any of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::http::NAME;
use crate::{pattern, transfer};

/// Connections that are being opened at once by what holds many, below the usual accept queue.
pub(crate) const OPENING: usize = 64;

/// Latencies that percentiles are taken from; a hundred above the 99.9th.
const LATENCIES: usize = 100_000;

#[derive(Args)]
pub(crate) struct Load {
    /// Name or address, and port.
    #[arg(long)]
    to: String,
    /// Clients that work at the same time.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Whether each client keeps its connection, or opens one per request.
    #[arg(long, value_enum)]
    mode: ConnectionMode,
    #[arg(long, value_enum, default_value = "echo")]
    protocol: Protocol,
    /// Bytes of an echo request.
    #[arg(long, default_value_t = 100)]
    size: u64,
    /// Pause of each client between requests.
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// How long one request may take, connecting included.
    #[arg(long, default_value_t = 10)]
    timeout_s: u64,
    /// The requests after which to stop; until SIGTERM when absent.
    #[arg(long)]
    requests: Option<u64>,
    /// Print `done <number>` after every so many successful requests, and for each that is not
    /// `failed, begun at <Unix time in ms>: <why>`.
    #[arg(long)]
    tell_every: Option<u64>,
}

#[derive(Args)]
pub(crate) struct Hold {
    /// Name or address, and port, of the server.
    #[arg(long)]
    pub(crate) to: String,
    #[arg(long)]
    pub(crate) connections: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ConnectionMode {
    Keep,
    New,
}

#[derive(Clone, Copy, ValueEnum)]
enum Protocol {
    Echo,
    Http,
}

/// The connection that a request used, if the server left it open, and who answered it.
type Answered = (Option<BufReader<TcpStream>>, Option<String>);

#[derive(Default)]
struct Account {
    started: u64,
    succeeded: u64,
    connections: u64,
    errors: BTreeMap<String, u64>,
    answered_by: BTreeMap<String, u64>,
    latencies: Vec<Duration>,
    last_success: Option<Instant>,
    longest_gap: Duration,
}

/// Fails (exit code 1) only when it could not work at all; errors of requests are in the report.
pub(crate) async fn load(args: Load) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let account = Rc::new(RefCell::new(Account::default()));
    let args = Rc::new(args);
    let local = LocalSet::new();
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(local.spawn_local(client(Rc::clone(&args), Rc::clone(&account))));
    }
    println!("working");
    let finished = async {
        for client in clients {
            drop(client.await);
        }
    };
    local
        .run_until(async {
            tokio::select! {
                () = finished => {}
                _ = terminate.recv() => {}
            }
        })
        .await;
    println!("{}", account.borrow_mut().report());
    Ok(())
}

async fn client(args: Rc<Load>, account: Rc<RefCell<Account>>) {
    let mut kept: Option<BufReader<TcpStream>> = None;
    loop {
        {
            let mut account = account.borrow_mut();
            if args.requests.is_some_and(|limit| account.started >= limit) {
                return;
            }
            account.started += 1;
            account.connections += u64::from(kept.is_none());
        }
        let (began, begun_at) = (Instant::now(), unix_ms());
        let one = request(&args, kept.take());
        let result = match timeout(Duration::from_secs(args.timeout_s), one).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("no answer within {} s", args.timeout_s)),
        };
        let failure = result.as_ref().err().map(|error| format!("{error:#}"));
        let stream = account.borrow_mut().settle(began, result);
        match (args.tell_every, failure) {
            (Some(every), None) => account.borrow().tell(every),
            (Some(_), Some(failure)) => println!("failed, begun at {begun_at}: {failure}"),
            (None, _) => {}
        }
        kept = stream.filter(|_| args.mode == ConnectionMode::Keep);
        if args.interval_ms > 0 {
            sleep(Duration::from_millis(args.interval_ms)).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

fn unix_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// One request, on the connection that was kept or a new one, and who answered it.
async fn request(args: &Load, kept: Option<BufReader<TcpStream>>) -> Result<Answered> {
    let was_kept = kept.is_some();
    let mut stream = match kept {
        Some(stream) => stream,
        None => BufReader::new(transfer::connect(&args.to).await?),
    };
    let answered = match args.protocol {
        Protocol::Echo => echo(&mut stream, pattern::at(0, args.size)).await.map(|()| (true, None)),
        Protocol::Http => http(&mut stream, args).await.map(|(open, name)| (open, Some(name))),
    };
    let (open, name) =
        answered.context(if was_kept { "on a kept connection" } else { "on a new connection" })?;
    Ok((open.then_some(stream), name))
}

async fn echo(stream: &mut BufReader<TcpStream>, message: &[u8]) -> Result<()> {
    stream.write_all(message).await.context("write")?;
    let mut reply = vec![0; message.len()];
    stream.read_exact(&mut reply).await.context("read")?;
    ensure!(reply == message, "the echo differs");
    Ok(())
}

/// Whether the connection stays open, and who answered.
async fn http(stream: &mut BufReader<TcpStream>, args: &Load) -> Result<(bool, String)> {
    let close = if args.mode == ConnectionMode::New { "Connection: close\r\n" } else { "" };
    let request = format!("GET /load HTTP/1.1\r\nHost: {}\r\n{close}\r\n", args.to);
    stream.write_all(request.as_bytes()).await.context("write")?;
    let (mut length, mut name, mut first, mut open) = (0, String::new(), true, true);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.context("read")?;
        let line = line.trim_end();
        if std::mem::take(&mut first) {
            ensure!(line.starts_with("HTTP/1.1 200"), "answered with {line:?}");
        } else if let Some((header, value)) = line.split_once(": ") {
            match header.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().context("Content-Length")?,
                "connection" => open = !value.eq_ignore_ascii_case("close"),
                NAME => name = value.to_owned(),
                _ => {}
            }
        } else if line.is_empty() {
            break;
        } else {
            bail!("a header line {line:?}");
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.context("read the body")?;
    Ok((open, name))
}

pub(crate) async fn hold(args: Hold) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut held = Vec::new();
    while held.len() < args.connections {
        let number = OPENING.min(args.connections - held.len());
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..number {
            let to = args.to.clone();
            opening.spawn(async move {
                let mut stream = BufReader::new(transfer::connect(&to).await?);
                echo(&mut stream, b"first").await.map(|()| stream)
            });
        }
        for opened in opening.join_all().await {
            let so_far = held.len();
            held.push(opened.with_context(|| format!("connection {so_far}"))?);
        }
    }
    println!("holding {}", held.len());
    terminate.recv().await;
    let mut errors = BTreeMap::<String, u64>::new();
    for stream in &mut held {
        let checked = timeout(Duration::from_secs(10), echo(stream, b"still here?")).await;
        if let Err(error) = checked.unwrap_or_else(|_| bail!("no answer within 10 s")) {
            *errors.entry(format!("{error:#}")).or_default() += 1;
        }
    }
    println!("{}", json!({"held": held.len(), "errors": errors}));
    ensure!(errors.is_empty(), "some connections were lost");
    Ok(())
}

impl Account {
    /// Enters the outcome of a request; gives its connection back.
    fn settle(&mut self, began: Instant, outcome: Result<Answered>) -> Option<BufReader<TcpStream>> {
        match outcome {
            Ok((stream, name)) => {
                self.succeed(began, name);
                stream
            }
            Err(error) => {
                *self.errors.entry(format!("{error:#}")).or_default() += 1;
                None
            }
        }
    }

    fn succeed(&mut self, began: Instant, name: Option<String>) {
        let now = Instant::now();
        self.succeeded += 1;
        // A fair sample of all requests, whatever their number (reservoir sampling).
        if self.latencies.len() < LATENCIES {
            self.latencies.push(now - began);
        } else if let Some(old) = self.latencies.get_mut(fastrand::usize(..self.succeeded as usize)) {
            *old = now - began;
        }
        self.longest_gap = self.longest_gap.max(now - self.last_success.unwrap_or(began));
        self.last_success = Some(now);
        if let Some(name) = name {
            *self.answered_by.entry(name).or_default() += 1;
        }
    }

    fn tell(&self, every: u64) {
        if self.succeeded.is_multiple_of(every) {
            println!("done {}", self.succeeded);
        }
    }

    /// `unfinished` requests were under way at the end. `longest_gap_ms` is between successes of any client.
    fn report(&mut self) -> serde_json::Value {
        self.latencies.sort();
        let percentile = |percent: usize| {
            let index = (self.latencies.len() * percent / 100).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).map(Duration::as_micros)
        };
        let failed: u64 = self.errors.values().sum();
        json!({
            "started": self.started,
            "succeeded": self.succeeded,
            "failed": failed,
            "unfinished": self.started - self.succeeded - failed,
            "connections": self.connections,
            "errors": self.errors,
            "answered_by": self.answered_by,
            "latency_us": {"p50": percentile(50), "p99": percentile(99), "max": percentile(100)},
            "longest_gap_ms": self.longest_gap.as_millis(),
        })
    }
}
