//! The client that wants to hurt: does one thing to a proxy until it is killed, and says now and then how far it got.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use hbone::{Connect, Opener};
use identity::Certificate;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::abuses::{self, Abuse, Inside};
use super::client::{Carrier, dial, tunnel};
use super::tunnelled::Tunnelled;
use crate::waypoint::certificates;

/// Streams of one orderly tunnel.
const STREAMS: usize = 50;
/// Who was thrown out comes back after this time.
const BACK_AFTER: Duration = Duration::from_millis(10);
/// A connection that is not made by then counts as refused.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two lines.
const TELL: Duration = Duration::from_millis(100);

/// What to do to whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The proxy
    #[arg(long)]
    proxy: SocketAddr,
    /// The address that connections come from
    #[arg(long)]
    from: IpAddr,
    /// What tunnels are asked to lead to
    #[arg(long)]
    authority: String,
    /// The directory with the attacker's certificate
    #[arg(long)]
    certificate: PathBuf,
    /// The abuse's name
    #[arg(long, value_parser = |name: &str| abuses::named(name).ok_or("there is no such abuse"))]
    abuse: Abuse,
}

/// How far it got.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Account {
    /// Connections, or streams, that were made.
    pub(crate) made: u64,
    /// Those that could not be made.
    pub(crate) refused: u64,
    /// Those that the proxy ended.
    pub(crate) ended: u64,
    /// What was said.
    pub(crate) bytes: u64,
}

/// Hurts until it is killed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, attack(args))
}

async fn attack(args: &Args) -> anyhow::Result<()> {
    let Args { proxy, from, authority, abuse, .. } = args;
    let attacker = Rc::new(Attacker {
        way: (*from, *proxy),
        authority: authority.clone(),
        certificate: certificates::read(&args.certificate)?,
        abuse: *abuse,
        tunnels: (0..abuse.connections.div_ceil(STREAMS)).map(|_| Mutex::default()).collect(),
        account: RefCell::default(),
    });
    for index in 0..abuse.connections {
        spawn_local(Rc::clone(&attacker).keep_up(index / STREAMS));
    }
    loop {
        sleep(TELL).await;
        let account = *attacker.account.borrow();
        // Before the first is made there is nothing to measure.
        if account.made > 0 {
            println!("{}", serde_json::to_string(&account)?);
        }
    }
}

struct Attacker {
    way: (IpAddr, SocketAddr),
    authority: String,
    certificate: Certificate,
    abuse: Abuse,
    /// Orderly tunnels, where there have to be some.
    tunnels: Vec<Mutex<Option<Opener>>>,
    account: RefCell<Account>,
}

impl Attacker {
    async fn keep_up(self: Rc<Self>, tunnel: usize) {
        loop {
            match timeout(PATIENCE, self.connect(tunnel)).await {
                Ok(Ok(io)) => {
                    self.account.borrow_mut().made += 1;
                    // However it ended: it was the proxy that ended it.
                    let _ = self.hurt(io).await;
                    self.account.borrow_mut().ended += 1;
                }
                Ok(Err(_)) | Err(_) => self.account.borrow_mut().refused += 1,
            }
            sleep(BACK_AFTER).await;
        }
    }

    async fn connect(&self, tunnel: usize) -> anyhow::Result<Box<dyn Carrier>> {
        Ok(match self.abuse.inside {
            Inside::Tcp => Box::new(dial(self.way).await?),
            Inside::Handshake | Inside::Tls => {
                let connector = TlsConnector::from(self.certificate.client_config());
                Box::new(connector.connect(self.way.1.ip().into(), dial(self.way).await?).await?)
            }
            Inside::Http1 | Inside::Http2 => {
                let opener = self.tunnel(&self.tunnels[tunnel]).await?;
                let connect = Connect { authority: self.authority.clone(), ..Connect::default() };
                let stream = opener.open(connect).await.context("open a stream")?;
                Box::new(Tunnelled::new(stream))
            }
        })
    }

    /// One that several share.
    async fn tunnel(&self, shared: &Mutex<Option<Opener>>) -> anyhow::Result<Opener> {
        let mut shared = shared.lock().await;
        if let Some(opener) = shared.as_ref().filter(|opener| !opener.is_closing()) {
            return Ok(opener.clone());
        }
        let opener = tunnel(dial(self.way).await?, &self.certificate).await?;
        Ok(shared.insert(opener).clone())
    }

    async fn hurt(&self, io: Box<dyn Carrier>) -> anyhow::Result<()> {
        if self.abuse.inside == Inside::Handshake {
            return Ok(());
        }
        let (mut answers, mut requests) = tokio::io::split(io);
        let read = async {
            let mut unread = vec![0; 16 << 10];
            if !self.abuse.reads {
                std::future::pending::<()>().await;
            }
            while answers.read(&mut unread).await? > 0 {}
            anyhow::Ok(())
        };
        let write = async {
            for round in 0.. {
                let said = (self.abuse.says)(&self.authority, round);
                requests.write_all(&said).await?;
                requests.flush().await?;
                self.account.borrow_mut().bytes += said.len() as u64;
                sleep(self.abuse.pause).await;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            ended = read => ended,
            ended = write => ended,
        }
    }
}
