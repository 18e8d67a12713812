//! A DNS client that checks where answers come from, as a resolver library does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::transfer::connect;

/// As long as resolver libraries wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct Ask {
    #[arg(long)]
    server: SocketAddr,
    #[arg(long)]
    name: String,
    #[arg(long, value_enum, default_value = "a")]
    kind: Kind,
    #[arg(long, value_enum, default_value = "connected")]
    transport: Transport,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    A,
    Aaaa,
}

#[derive(Clone, Copy, ValueEnum)]
enum Transport {
    /// UDP on a connected socket: the kernel drops answers from anybody else.
    Connected,
    /// UDP on an unconnected socket: the program sees who answers.
    Unconnected,
    Tcp,
}

pub(crate) async fn ask(args: Ask) -> Result<()> {
    let kind = match args.kind {
        Kind::A => RecordType::A,
        Kind::Aaaa => RecordType::AAAA,
    };
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(&args.name)?, kind));
    let exchanged = exchange(&args, query.to_vec()?);
    let reply = timeout(ANSWER_WITHIN, exchanged).await.context("no answer within 5 s")??;
    let reply = Message::from_vec(&reply).context("the answer is not DNS")?;
    ensure!(reply.metadata.id == query.metadata.id, "the answer is to another question");
    let mut answers: Vec<_> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    answers.sort();
    let code = reply.metadata.response_code.to_string();
    println!("{}", json!({"code": code, "truncated": reply.metadata.truncation, "answers": answers}));
    Ok(())
}

async fn exchange(args: &Ask, query: Vec<u8>) -> Result<Vec<u8>> {
    if let Transport::Tcp = args.transport {
        let mut stream = connect(&args.server.to_string()).await?;
        stream.write_all(&[&u16::try_from(query.len())?.to_be_bytes(), query.as_slice()].concat()).await?;
        let mut reply = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut reply).await?;
        return Ok(reply);
    }
    let any = if args.server.is_ipv4() {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    if let Transport::Connected = args.transport {
        socket.connect(args.server).await?;
        socket.send(&query).await?;
    } else {
        socket.send_to(&query, args.server).await?;
    }
    let mut reply = vec![0; 4096];
    let (length, from) = socket.recv_from(&mut reply).await?;
    ensure!(from == args.server, "{from} answered, not {}", args.server);
    reply.truncate(length);
    Ok(reply)
}
