//! The programs of the demo's web shop: an HTTP server that may call others, and a customer who browses.
//!
//! Ordinary HTTP/1.1 over ordinary sockets. Knows nothing of a mesh; what it does is the same with and without one.

mod browse;
mod client;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "airglow-shop", about = "The programs of the web shop that `airglow demo` runs")]
struct Shop {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// A service: answers every request with JSON, after it has called the services that it depends on.
    Serve(serve::Serve),
    /// A customer: sends requests one after the other and reports what became of them.
    Browse(browse::Browse),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let result = match Shop::parse().mode {
        Mode::Serve(args) => serve::serve(args).await,
        Mode::Browse(args) => browse::browse(args).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("airglow-shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
