//! Our waypoint without tunnels, a process like the other: all that the product does for a request, asked without TLS.
//!
//! It is the product's own library with another door. The product has no such door.

use std::net::SocketAddr;

use model::identity::Identity;

/// Where it is asked. The rest is set as a waypoint is set, by the environment.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Addresses of services, which this process takes connections at
    #[arg(long, required = true)]
    service: Vec<SocketAddr>,
    /// Whom everybody is taken for who connects
    #[arg(long)]
    client: Identity,
}

/// Runs until it is told to stop.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let settings = daemon::config::Environment::read();
    let config = ::waypoint::config::load(&settings).map_err(anyhow::Error::msg)?;
    ::waypoint::app::run_plain(&config, &args.service, args.client)
}
