//! `bench`: what Airglow costs, measured as ratios in one interleaved run, and how soon a namespace is in the mesh.
//!
//! Owns the choice of the command; the measurements are in `node`, `waypoint` and `kubernetes`, the programs that make and take load in `load`.
//! Judges nothing: it prints what it measured, and the reader compares.

mod kubernetes;
mod load;
mod machine;
mod node;
mod resident;
mod stats;
mod table;
mod waypoint;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What Airglow costs, as ratios in one interleaved run.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: node::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The node proxy in a lab on this machine (root), against no mesh and another proxy. Also without a command
    Node(node::Args),
    /// Enrolment on a real Kubernetes on this machine (root, and the programs that `scripts/cluster-binaries` builds)
    Kubernetes(kubernetes::Args),
    /// The waypoint in a lab on this machine (root), beside Envoy
    Waypoint(waypoint::Args),
    /// What `node` starts in pods to take load
    #[command(hide = true)]
    AppServer,
    /// What `node` starts in pods to make load
    #[command(hide = true)]
    AppClient(load::client::Args),
    /// Our waypoint without tunnels, which `waypoint` compares with a plain Envoy
    #[command(hide = true)]
    PlainWaypoint(waypoint::plain::Args),
    /// What `waypoint` starts in pods to answer
    #[command(hide = true)]
    WaypointOrigin(waypoint::load::origin::Args),
    /// What `waypoint` starts in pods to hurt
    #[command(hide = true)]
    WaypointAttacker(waypoint::load::attacker::Args),
    /// What `waypoint` starts in pods to ask
    #[command(hide = true)]
    WaypointClient(waypoint::load::client::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        None => node::run(&cli.node),
        Some(Command::Node(args)) => node::run(&args),
        Some(Command::Kubernetes(args)) => kubernetes::run(&args),
        Some(Command::Waypoint(args)) => waypoint::run(&args),
        Some(Command::PlainWaypoint(args)) => waypoint::plain::run(args),
        Some(Command::WaypointOrigin(args)) => waypoint::load::origin::run(&args),
        Some(Command::WaypointAttacker(args)) => waypoint::load::attacker::run(&args),
        Some(Command::WaypointClient(args)) => waypoint::load::client::run(&args),
        Some(Command::AppServer) => load::server::run().map_err(anyhow::Error::from),
        Some(Command::AppClient(args)) => load::client::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
