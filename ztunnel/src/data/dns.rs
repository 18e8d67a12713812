//! DNS of an enrolled pod: packets in, packets out.
//!
//! Answers mesh names and asks the resolver that the pod asked for the rest, from the pod's own address. What a name means
//! is `dns::answer`'s. DNS over TCP comes in as a captured connection to port 53.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ebpf::socket::{self, DnsQuery, DnsReplier, receive_query};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::PodContext;
use super::serve::{Phase, leaving};
use crate::dns::answer::{Answer, answer, failure, udp_limit};

/// Questions of one pod that wait for its resolver. A resolver answers within a second; a flood beyond this is dropped,
/// as a resolver would.
const MAX_FORWARDED: usize = 512;
/// How long a resolver may take: clients ask again after five seconds themselves.
const RESOLVER_WITHIN: Duration = Duration::from_secs(5);
/// The largest UDP message.
const MAX_MESSAGE: usize = 65_535;

/// More small packets than a socket's usual receive buffer (208 KiB, of which each takes at least 768 bytes) holds.
const MAX_QUEUED: usize = 512;
/// The discard port: nobody sends from there.
const NOBODY: u16 = 9;

/// Answers until the pod leaves; then what has been asked by then. `listening` is dropped when nothing new is taken.
pub(crate) async fn serve(
    context: Arc<PodContext>,
    listener: UdpSocket,
    mut phase: watch::Receiver<Phase>,
    listening: watch::Receiver<()>,
) {
    let replier = match DnsReplier::open(&context.pod.netns) {
        Ok(replier) => Arc::new(replier),
        Err(error) => {
            tracing::error!(pod = %context.pod.workload, %error, "can't answer DNS for the pod");
            return;
        }
    };
    let mut questions = Questions { context, replier, forwarded: JoinSet::new() };
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        tokio::select! {
            received = listener.async_io(Interest::READABLE, || receive_query(listener.as_fd(), &mut buffer)) => {
                questions.take(received, &buffer);
            }
            Some(ended) = questions.forwarded.join_next() => surface(ended),
            () = leaving(&mut phase) => break,
        }
    }
    retire(&listener).await;
    for _ in 0..MAX_QUEUED {
        let Some(received) = pending(&listener, &mut buffer) else { break };
        questions.take(received, &buffer);
    }
    drop((listener, listening));
    while let Some(ended) = questions.forwarded.join_next().await {
        surface(ended);
    }
}

/// Makes the kernel hand what comes from now on to a successor's socket, if there is one: it passes over the connected
/// sockets of a group.
async fn retire(listener: &UdpSocket) {
    let nobody: SocketAddr = match listener.local_addr() {
        Ok(SocketAddr::V4(_)) => (Ipv4Addr::LOCALHOST, NOBODY).into(),
        _ => (Ipv6Addr::LOCALHOST, NOBODY).into(),
    };
    if let Err(error) = listener.connect(nobody).await {
        tracing::debug!(%error, "questions that come in this moment may be lost; who asked asks again");
    }
}

/// What waits in the socket's queue; an error is one packet's.
fn pending(listener: &UdpSocket, buffer: &mut [u8]) -> Option<io::Result<DnsQuery>> {
    match receive_query(listener.as_fd(), buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        received => Some(received),
    }
}

fn surface(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a DNS question ended by a fault of ours; please report it");
    }
}

/// The questions of one pod.
struct Questions {
    context: Arc<PodContext>,
    replier: Arc<DnsReplier>,
    /// Those that wait for the resolver.
    forwarded: JoinSet<()>,
}

impl Questions {
    fn take(&mut self, received: io::Result<DnsQuery>, buffer: &[u8]) {
        let query = match received {
            Ok(query) => query,
            Err(error) => {
                tracing::debug!(pod = %self.context.pod.workload, %error, "a DNS packet can't be received");
                return;
            }
        };
        // Whoever claims another's address would have that other one hear what it never asked.
        if !self.context.pod.owns(query.client.ip()) {
            return;
        }
        let Some(packet) = buffer.get(..query.length) else { return };
        match decide(&self.context, packet, Limit::Datagram) {
            Decision::Reply(bytes) => reply(&self.replier, &query, &bytes),
            Decision::Forward if self.forwarded.len() < MAX_FORWARDED => {
                let (context, replier, packet) =
                    (Arc::clone(&self.context), Arc::clone(&self.replier), packet.to_vec());
                self.forwarded.spawn(async move {
                    match forward(&context, &query, &packet).await {
                        Ok(bytes) => reply(&replier, &query, &bytes),
                        Err(error) => {
                            tracing::debug!(resolver = %query.resolver, %error, "the pod's resolver does not answer");
                        }
                    }
                });
            }
            Decision::Forward | Decision::Drop => {}
        }
    }
}

fn reply(replier: &DnsReplier, query: &DnsQuery, bytes: &[u8]) {
    if let Err(error) = replier.reply(query, bytes) {
        tracing::debug!(client = %query.client, %error, "a DNS answer can't be sent");
    }
}

/// What becomes of one question.
pub(crate) enum Decision {
    Reply(Vec<u8>),
    Forward,
    Drop,
}

/// How long an answer may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// What the asker takes in one datagram.
    Datagram,
    /// What fits a message at all.
    Message,
}

impl Limit {
    fn of(self, question: &Message) -> usize {
        match self {
            Self::Datagram => udp_limit(question),
            Self::Message => MAX_MESSAGE,
        }
    }
}

/// Decides on one message; an answer that is too long is truncated.
pub(crate) fn decide(context: &PodContext, packet: &[u8], limit: Limit) -> Decision {
    if context.pod.refused.is_some() {
        return Decision::Drop;
    }
    // What we can't read is the resolver's to judge: it is passed on unchanged.
    let Ok(question) = Message::from_vec(packet) else { return Decision::Forward };
    if question.metadata.message_type != MessageType::Query {
        return Decision::Drop;
    }
    let shared = &context.shared;
    let known = shared.mesh.snapshot().workload(&context.pod.workload);
    let Some(client) = known else { return Decision::Forward };
    let answered = answer(&shared.mesh.snapshot(), &client, &shared.settings.cluster_domain, &question);
    match answered {
        Answer::Forward => Decision::Forward,
        Answer::Reply(message) => encode(&message, limit.of(&question))
            .or_else(|| encode(&failure(&question, ResponseCode::ServFail), MAX_MESSAGE))
            .map_or(Decision::Drop, Decision::Reply),
    }
}

/// The message in at most `limit` bytes, truncated (with the bit that says so) if it has to be.
fn encode(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit { Some(whole) } else { message.truncate().to_vec().ok() }
}

async fn forward(context: &PodContext, query: &DnsQuery, packet: &[u8]) -> io::Result<Vec<u8>> {
    let resolver = resolver_of(query);
    let socket = socket::to_resolver(&context.pod.netns, query.client.ip().to_canonical(), resolver)?;
    socket.connect(&resolver.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(packet).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    let received = async {
        loop {
            let length = socket.recv(&mut answer).await?;
            if is_answer(&answer[..length], packet) {
                return io::Result::Ok(length);
            }
        }
    };
    let length = tokio::time::timeout(RESOLVER_WITHIN, received).await??;
    answer.truncate(length);
    Ok(answer)
}

/// A packet that only looks like it came from the resolver has to guess the question's number too (RFC 5452 section 9).
fn is_answer(packet: &[u8], question: &[u8]) -> bool {
    question.get(..2).is_some_and(|id| packet.starts_with(id))
        && packet.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

fn resolver_of(query: &DnsQuery) -> SocketAddr {
    model::address::canonical(query.resolver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_the_questions_number_and_says_so_is_its_answer() {
        let question = [0x12, 0x34, 1, 0, 0, 1];
        assert!(is_answer(&[0x12, 0x34, 0x81, 0x80, 0, 1], &question));
        assert!(!is_answer(&[0x12, 0x35, 0x81, 0x80, 0, 1], &question), "another number");
        assert!(!is_answer(&question, &question), "a question");
        assert!(
            !is_answer(&[0x12, 0x34], &question) && !is_answer(&[], &[]) && !is_answer(&[1, 2, 0x80], &[1])
        );
    }
}
