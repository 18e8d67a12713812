//! TCP ports of this process in the node's own network: two ztunnels can have them while one replaces the other.
//!
//! Owns no routes: what is answered is the caller's.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use daemon::http::{Routes, serve_tcp_to};
use ebpf::socket::{Tuple, owner};
use model::address::canonical;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections that wait to be accepted: scrapers, probes and a few operators.
const BACKLOG: i32 = 128;

/// A listener that the next ztunnel can open beside this one.
pub(crate) fn shared(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| format!("can't listen on {address}"))
}

/// Answers what only reads to root of this node, and to nobody else: as the admin socket does, for those who come by a
/// port-forward, which the container runtime opens as root.
pub(crate) async fn serve_root(port: u16, routes: Routes) -> anyhow::Result<()> {
    let listener = shared(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    serve_tcp_to(listener, routes.reads_only(), is_roots).await;
    Ok(())
}

/// Whether the other end is a socket of root on this node. Whoever can't be looked up is not.
fn is_roots(connection: &TcpStream) -> bool {
    let ends = connection.peer_addr().and_then(|peer| Ok((peer, connection.local_addr()?)));
    let asked = ends.and_then(|(peer, own)| owner(Tuple { local: canonical(peer), remote: canonical(own) }));
    match asked {
        Ok(0) => true,
        Ok(user) => {
            tracing::warn!(user, "only root may read the state of this node by its admin port; refused");
            false
        }
        Err(error) => {
            tracing::debug!(%error, "who is at the admin port can't be looked up; refused");
            false
        }
    }
}
