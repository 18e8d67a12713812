//! The data threads: one single-threaded runtime each, told by the manager which pods to serve.
//!
//! Owns the threads and their command queues; what is served how is `serve`'s.

use std::collections::HashMap;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::thread;

use proxy::handshakes::Handshakes;
use proxy::tunnels::Tunnels;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::balance::Balance;
use super::serve::{self, Listeners, Phase};
use super::{PodContext, Shared, dns, relay};
use crate::pod::Pod;

/// Commands under way to one thread: a node's pods all at once.
const COMMANDS: usize = 1024;

/// Tasks that run before the thread asks the kernel what else has arrived. Beside bulk data a task takes up to 50 µs, and a
/// small message waits as long as that. Measured against 61, what the runtime does by itself: a fifth less time for a message
/// beside bulk data, for a twentieth more processor time of ping-pongs on 32 connections; after each task, a seventh more.
const EVENT_INTERVAL: u32 = 2;

/// The sockets of one pod for one thread, made by the manager in the pod's namespace.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) outbound: StdListener,
    pub(crate) plaintext: StdListener,
    pub(crate) hbone: StdListener,
    /// Only one thread answers DNS.
    pub(crate) dns: Option<std::net::UdpSocket>,
}

/// What the manager tells a thread.
#[derive(Debug)]
enum Command {
    Serve(Arc<Pod>, Sockets),
    /// Nothing new is captured of a pod: let what there is end.
    Finish(u64),
    /// Stop accepting for one pod, or for all of them; answered when nothing is accepted any more, and when the last
    /// connection has ended.
    Leave(Option<u64>, oneshot::Sender<()>, oneshot::Sender<()>),
    /// End everything of one pod, or of all of them.
    Cut(Option<u64>),
}

/// What a thread says of a pod that it leaves.
#[derive(Debug)]
pub(crate) struct Leaving {
    /// Resolves when its listeners are closed.
    pub(crate) closed: oneshot::Receiver<()>,
    /// Resolves when its last connection has ended.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// A handle on one thread.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    commands: mpsc::Sender<Command>,
}

impl Thread {
    /// Starts thread number `index`.
    pub(crate) fn start(index: usize, shared: Arc<Shared>) -> io::Result<Self> {
        let (commands, received) = mpsc::channel(COMMANDS);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .build()?;
        thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || runtime.block_on(run(shared, received)))?;
        Ok(Self { commands })
    }

    /// Begins to serve a pod, in addition to what is served of it already.
    pub(crate) async fn serve(&self, pod: Arc<Pod>, sockets: Sockets) {
        self.send(Command::Serve(pod, sockets)).await;
    }

    /// Nothing new is captured of a pod, by its generation: its tunnels are told to go away, and those that it keeps for
    /// later are closed. What was on its way is still accepted. To be repeated, because tunnels fall idle one by one.
    pub(crate) async fn finish(&self, pod: u64) {
        self.send(Command::Finish(pod)).await;
    }

    /// Stops accepting for a pod, by its generation (`None`: for all).
    pub(crate) async fn leave(&self, pod: Option<u64>) -> Leaving {
        let ((deaf, closed), (done, ended)) = (oneshot::channel(), oneshot::channel());
        self.send(Command::Leave(pod, deaf, done)).await;
        Leaving { closed, ended }
    }

    /// Ends every connection of a pod, by its generation (`None`: of all).
    pub(crate) async fn cut(&self, pod: Option<u64>) {
        self.send(Command::Cut(pod)).await;
    }

    async fn send(&self, command: Command) {
        // A thread ends only with the process; a command that finds none has nothing left to act on.
        let _ = self.commands.send(command).await;
    }
}

/// One pod's service on this thread.
struct Served {
    context: Arc<PodContext>,
    phase: watch::Sender<Phase>,
    /// Each listener has a receiver beside it.
    listening: watch::Sender<()>,
}

impl Served {
    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let forward = *phase < to;
            if forward {
                *phase = to;
            }
            forward
        });
    }
}

async fn run(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let balance = Balance::default();
    let mut served: HashMap<u64, Served> = HashMap::new();
    let mut tasks: JoinSet<u64> = JoinSet::new();
    let mut next = 0_u64;
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Serve(pod, sockets)) => {
                    next += 1;
                    let (phase, watched) = watch::channel(Phase::Serving);
                    let (listening, listener) = watch::channel(());
                    let context = Arc::new(PodContext {
                        shared: Arc::clone(&shared),
                        pod,
                        balance: balance.clone(),
                        tunnels: Tunnels::default(),
                        buffers: relay::Buffers::default(),
                        handshakes: Handshakes::default(),
                    });
                    served.insert(next, Served { context: Arc::clone(&context), phase, listening });
                    let key = next;
                    tasks.spawn(async move {
                        start(context, sockets, watched, listener).await;
                        key
                    });
                }
                Some(Command::Finish(pod)) => {
                    for served in of(&served, Some(pod)) {
                        served.advance(Phase::Ending);
                        served.context.tunnels.close_idle();
                    }
                }
                Some(Command::Leave(pod, deaf, done)) => {
                    let leaving = of(&served, pod);
                    let (listening, phases): (Vec<_>, Vec<_>) = leaving
                        .map(|served| {
                            served.advance(Phase::Leaving);
                            (served.listening.clone(), served.phase.clone())
                        })
                        .unzip();
                    tokio::spawn(async move {
                        for listening in listening {
                            listening.closed().await;
                        }
                        let _ = deaf.send(());
                        for phase in phases {
                            phase.closed().await;
                        }
                        let _ = done.send(());
                    });
                }
                Some(Command::Cut(pod)) => {
                    for served in of(&served, pod) {
                        served.advance(Phase::Cut);
                    }
                }
            },
            Some(ended) = tasks.join_next() => match ended {
                Ok(key) => drop(served.remove(&key)),
                Err(error) => tracing::error!(%error, "a pod's service ended by a fault of ours; please report it"),
            },
        }
    }
}

fn of(served: &HashMap<u64, Served>, pod: Option<u64>) -> impl Iterator<Item = &Served> {
    served
        .values()
        .filter(move |served| pod.is_none_or(|generation| served.context.pod.generation == generation))
}

async fn start(
    context: Arc<PodContext>,
    sockets: Sockets,
    phase: watch::Receiver<Phase>,
    listening: watch::Receiver<()>,
) {
    let converted = (|| {
        let listeners = Listeners {
            outbound: TcpListener::from_std(sockets.outbound)?,
            plaintext: TcpListener::from_std(sockets.plaintext)?,
            hbone: TcpListener::from_std(sockets.hbone)?,
        };
        io::Result::Ok((listeners, sockets.dns.map(UdpSocket::from_std).transpose()?))
    })();
    let (listeners, dns) = match converted {
        Ok(converted) => converted,
        Err(error) => {
            tracing::error!(pod = %context.pod.workload, %error, "can't serve the pod on this thread");
            return;
        }
    };
    let serving = serve::serve(Arc::clone(&context), listeners, phase.clone(), listening.clone());
    match dns {
        Some(socket) => {
            tokio::join!(serving, dns::serve(Arc::clone(&context), socket, phase, listening));
        }
        None => {
            drop(listening);
            serving.await;
        }
    }
}
