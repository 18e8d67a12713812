//! The node API: a unix socket on which the node's container side announces pods.
//!
//! One JSON object per line in, one per line out: `{"add":{..}}`, `{"delete":{"uid":".."}}`, `{"list":{}}` answered by
//! `{"ok":true,..}` or `{"error":".."}`; `{"succeed":{}}` is a successor's word. Only root may speak. Parses and bounds;
//! what a command does is the manager's.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use super::sandbox::Sandbox;

/// An announcement is under 1 KiB; sixteen addresses and long names stay far below this.
const MAX_LINE: u64 = 16 * 1024;
/// One agent and a few people with a shell; more are a leak on their side.
const MAX_CONNECTIONS: usize = 32;
/// An announcement enrols a pod, which takes milliseconds; a kubelet gives its CNI plugin minutes, we answer long before.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// How long a started line may take to arrive whole.
const LINE_WITHIN: Duration = Duration::from_secs(5);
/// How long a connection may be silent between commands.
const IDLE: Duration = Duration::from_secs(300);

/// What can be asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// A pod exists; answered when it is enrolled, or is known not to be wanted.
    Add(Sandbox),
    /// A pod is gone.
    Delete(Delete),
    /// What is known.
    List(Empty),
    /// Another ztunnel takes charge of this node, for as long as the connection stands.
    Succeed(Empty),
    /// The one that took charge has ended. Nobody can send this: it is the end of the connection.
    #[serde(skip_deserializing)]
    Orphaned,
}

/// Which pod is gone.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// Its UID.
    pub(crate) uid: String,
    /// Only if it is still this sandbox of the container runtime: a pod whose sandbox is made anew keeps its UID, and what
    /// is said of the old one may come late.
    #[serde(default)]
    pub(crate) sandbox_id: Option<String>,
}

/// No arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Empty {}

/// What is answered.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Reply {
    /// It was not done.
    Error {
        /// Why, and how to mend it.
        error: String,
    },
    /// It was done.
    Ok {
        /// Always true.
        ok: bool,
        /// The pod's state after an `add`.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        state: Option<Added>,
        /// All pods, for `list`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pods: Option<Vec<PodStatus>>,
    },
}

/// What became of a pod that was announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Added {
    /// As in [`PodStatus`].
    pub(crate) state: String,
    /// Nothing passes without us: its first process may start.
    pub(crate) captured: bool,
    /// As in [`PodStatus`].
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
}

/// One pod in a `list`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PodStatus {
    /// Its UID.
    pub(crate) uid: String,
    /// `namespace/name`.
    pub(crate) pod: String,
    /// `enrolled`, `pending`, `failed`, `leaving` or `not wanted`.
    pub(crate) state: &'static str,
    /// Why, where that is not plain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) message: String,
    /// The container runtime's name for its sandbox, if it was told.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sandbox_id: String,
    /// Where its network namespace is.
    pub(crate) netns: PathBuf,
}

/// A command on its way to the manager.
pub(crate) type Command = (Request, oneshot::Sender<Reply>);

/// Commands under way: one per pod that starts at once.
pub(super) const COMMANDS: usize = 256;

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, commands: mpsc::Sender<Command>) {
    let mut room = Room::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let place = room.make().await;
                let (commands, silence) = (commands.clone(), room.silence());
                let told = silence.clone();
                let task = tokio::spawn(async move {
                    if let Err(error) = converse(stream, &commands, &told).await {
                        tracing::warn!(%error, "a node API connection was closed");
                    }
                    drop(place);
                });
                room.visitors.push_back((task.abort_handle(), silence));
            }
            Err(error) => {
                tracing::warn!(%error, "the node API can't accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await; // out of descriptors: let some close
            }
        }
    }
}

/// Whether one connection waits for a command, and how the room learns of it.
#[derive(Clone, Debug)]
struct Silence {
    now: Arc<AtomicBool>,
    begins: Arc<Notify>,
}

impl Silence {
    fn begin(&self) {
        self.now.store(true, Ordering::Relaxed);
        self.begins.notify_one();
    }

    fn end(&self) {
        self.now.store(false, Ordering::Relaxed);
    }
}

/// Who is connected, the oldest first. When the room is full the oldest that says nothing gives way: nobody who holds
/// connections open can keep pods from being announced.
#[derive(Debug)]
struct Room {
    places: Arc<Semaphore>,
    visitors: VecDeque<(AbortHandle, Silence)>,
    silence_begins: Arc<Notify>,
}

impl Room {
    fn new() -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { places, visitors: VecDeque::new(), silence_begins: Arc::default() }
    }

    fn silence(&self) -> Silence {
        Silence { now: Arc::default(), begins: Arc::clone(&self.silence_begins) }
    }

    async fn make(&mut self) -> OwnedSemaphorePermit {
        self.visitors.retain(|(task, _)| !task.is_finished());
        loop {
            if self.places.available_permits() == 0 {
                let silent =
                    self.visitors.iter().position(|(_, silence)| silence.now.load(Ordering::Relaxed));
                if let Some((task, _)) = silent.and_then(|index| self.visitors.remove(index)) {
                    task.abort();
                }
            }
            tokio::select! {
                place = Arc::clone(&self.places).acquire_owned() => {
                    return place.expect("the semaphore is never closed");
                }
                () = self.silence_begins.notified() => {}
            }
        }
    }
}

async fn converse(stream: UnixStream, commands: &mpsc::Sender<Command>, silence: &Silence) -> io::Result<()> {
    let caller = stream.peer_cred()?;
    if caller.uid() != 0 {
        let message = format!("the node API is for root, not for uid {}", caller.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        silence.begin();
        let readable = tokio::time::timeout(IDLE, reader.fill_buf()).await;
        silence.end();
        if !matches!(readable, Ok(Ok(bytes)) if !bytes.is_empty()) {
            return Ok(());
        }
        let mut line = Vec::new();
        let mut bounded = (&mut reader).take(MAX_LINE);
        tokio::time::timeout(LINE_WITHIN, bounded.read_until(b'\n', &mut line)).await??;
        if line.last() != Some(&b'\n') {
            let reply = Reply::Error { error: format!("a command is one line of at most {MAX_LINE} bytes") };
            send(&mut writer, &reply).await?;
            return Ok(());
        }
        let request = match serde_json::from_slice(&line) {
            Ok(request) => request,
            Err(error) => {
                let error = format!("not a command of the node API: {error}");
                send(&mut writer, &Reply::Error { error }).await?;
                continue;
            }
        };
        let succeeds = matches!(request, Request::Succeed(_));
        let reply = ask(commands, request).await;
        let succeeded = succeeds && matches!(reply, Reply::Ok { .. });
        let sent = send(&mut writer, &reply).await;
        if succeeded {
            // Whatever ends this connection ends the succession, and nothing else does.
            let mut nothing = [0; 64];
            while sent.is_ok() && matches!(reader.read(&mut nothing).await, Ok(length) if length > 0) {}
            ask(commands, Request::Orphaned).await;
            return Ok(());
        }
        sent?;
    }
}

async fn ask(commands: &mpsc::Sender<Command>, request: Request) -> Reply {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        commands.send((request, reply)).await.ok()?;
        answer.await.ok()
    };
    match tokio::time::timeout(ANSWER_WITHIN, asked).await {
        Ok(Some(reply)) => reply,
        Ok(None) => Reply::Error { error: "ztunnel is shutting down; ask its successor".to_owned() },
        Err(_) => {
            Reply::Error { error: format!("no answer within {} s; ask again", ANSWER_WITHIN.as_secs()) }
        }
    }
}

async fn send(writer: &mut (impl AsyncWriteExt + Unpin), reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    tokio::time::timeout(LINE_WITHIN, writer.write_all(&line)).await?
}

#[cfg(test)]
mod tests {
    use super::super::door::listen;
    use super::super::succession::Predecessor;
    use super::*;

    async fn check(sent: &[u8], expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let (commands, mut received) = mpsc::channel::<Command>(1);
        let server = tokio::spawn(serve(listen(&path).unwrap().0, commands));
        tokio::spawn(async move {
            while let Some((request, reply)) = received.recv().await {
                let added = Added { state: format!("{request:?}"), captured: false, message: String::new() };
                let _ = reply.send(Reply::Ok { ok: true, state: Some(added), pods: None });
            }
        });
        let mut stream = UnixStream::connect(&path).await.unwrap();
        // The server may close on us in the middle of a flood; what counts is its answer.
        let _ = stream.write_all(sent).await;
        let mut reply = String::new();
        BufReader::new(stream).read_line(&mut reply).await.unwrap();
        assert!(reply.contains(expected), "{reply:?} should contain {expected:?}");
        server.abort();
    }

    #[tokio::test]
    async fn commands_are_understood() {
        check(b"{\"delete\":{\"uid\":\"a-1\"}}\n", "a-1").await;
        check(b"{\"list\":{}}\n", "List").await;
        check(
            b"{\"add\":{\"uid\":\"u\",\"namespace\":\"n\",\"name\":\"p\",\"service_account\":\"s\",\"netns\":\"/x\",\"addresses\":[\"10.0.0.1\"]}}\n",
            "\"captured\":false",
        )
        .await;
        check(b"{\"delete\":{\"uid\":\"a-1\",\"sandbox_id\":\"f00\"}}\n", "f00").await;
    }

    #[tokio::test]
    async fn a_successor_is_in_charge_for_as_long_as_its_connection_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let (commands, mut received) = mpsc::channel::<Command>(1);
        let server = tokio::spawn(serve(listen(&path).unwrap().0, commands));
        let mut successor = Predecessor::find(&path).await.expect("somebody listens");
        let succeeding = tokio::spawn(async move { successor.succeed().await.map(|()| successor) });
        let (request, reply) = received.recv().await.unwrap();
        assert!(matches!(request, Request::Succeed(_)), "{request:?}");
        reply.send(Reply::Ok { ok: true, state: None, pods: None }).unwrap();
        let successor = succeeding.await.unwrap().expect("it may take charge");
        assert!(received.try_recv().is_err(), "it lives");
        drop(successor);
        assert!(matches!(received.recv().await.unwrap().0, Request::Orphaned));
        server.abort();
        let _ = server.await;
        assert!(Predecessor::find(&path).await.is_none(), "nobody listens");
    }

    #[tokio::test]
    async fn those_who_say_nothing_give_way_and_those_who_wait_for_an_answer_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let (commands, mut received) = mpsc::channel::<Command>(1);
        let server = tokio::spawn(serve(listen(&path).unwrap().0, commands));
        let mut waiting = UnixStream::connect(&path).await.unwrap();
        waiting.write_all(b"{\"delete\":{\"uid\":\"a-1\"}}\n").await.unwrap();
        let (_, owed) = received.recv().await.unwrap();
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        let mut asking = UnixStream::connect(&path).await.unwrap();
        asking.write_all(b"{\"list\":{}}\n").await.unwrap();
        for (stream, reply) in [(asking, received.recv().await.unwrap().1), (waiting, owed)] {
            reply.send(Reply::Ok { ok: true, state: None, pods: None }).unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.unwrap();
            assert_eq!(line, "{\"ok\":true}\n");
        }
        server.abort();
    }

    #[tokio::test]
    async fn garbage_gets_a_clear_error() {
        check(b"hello\n", "not a command").await;
        check(b"{\"add\":{\"uid\":7}}\n", "not a command").await;
        check(b"{\"remove\":{}}\n", "unknown variant").await;
        check(b"{\"orphaned\":null}\n", "unknown variant").await;
        check(&[b'x'; 20_000], "at most 16384 bytes").await;
    }
}
