//! An ordinary program for tests where curl, python3 and nginx do not suffice: servers, checking clients, load.
//!
//! It knows nothing of a mesh. Servers print `listening on <address>` when they are ready and run until they are killed;
//! clients print one line of JSON and exit with 0 only if everything was as it should be.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

mod bypass;
mod dns;
mod grpc;
mod http;
mod load;
mod pattern;
mod tcp;
mod transfer;
mod upload;
mod websocket;

#[derive(Parser)]
#[command(name = "lab-app", about = "An ordinary program for tests")]
struct App {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(Subcommand)]
enum Mode {
    /// HTTP server: answers every request with JSON that says who asked for what.
    Http(http::Serve),
    /// TCP server that sends back what it gets, each direction ending by itself.
    Echo(Listen),
    /// TCP server that speaks first and then echoes.
    Banner(tcp::Banner),
    /// TCP server that reads to the end and then answers with length and checksum.
    Sink(Listen),
    /// TCP server that sends a known pattern and closes.
    Source(tcp::Source),
    /// TCP server that greets, ends its own direction at once, and reads on; answers on standard output.
    EarlyFin(Listen),
    /// WebSocket server that echoes messages.
    Websocket(Listen),
    /// gRPC server (HTTP/2) whose methods echo messages, but for `/lab.Echo/Sum`, which counts them, and that of the health service.
    Grpc(Listen),
    /// Client of `sink`: sends the pattern, ends its direction, checks the answer.
    Send(transfer::Send),
    /// Client of `source`: checks that the whole pattern arrives.
    Receive(transfer::Receive),
    /// Client of `http`: sends the pattern as a body, checks the answer.
    Upload(upload::Transfer),
    /// Client of `http`: checks that the whole pattern arrives as a body.
    Download(upload::Transfer),
    /// Client of `early-fin`: sends after the other side has ended its direction.
    LateSend(transfer::LateSend),
    /// Client of `banner`: waits for the greeting before it says anything.
    Greeted(transfer::Greeted),
    /// Client of `websocket`.
    WebsocketClient(websocket::Client),
    /// Opens many connections to `websocket`, holds them until SIGTERM, then checks that each still works.
    WebsocketHold(load::Hold),
    /// Client of `grpc`.
    GrpcClient(grpc::Client),
    /// Calls of gRPC to `http` servers: which of them answers how many.
    GrpcCount(grpc::Count),
    /// Keeps many clients of `echo` or `http` busy until SIGTERM, then reports.
    Load(load::Load),
    /// Opens many connections to `echo`, holds them until SIGTERM, then checks that each still works.
    Hold(load::Hold),
    /// Asks a DNS server.
    Dns(dns::Ask),
    /// Client of `echo` that connects in an unusual way, and says what became of it.
    Attempt(bypass::Attempt),
}

/// Where a server listens.
#[derive(Args, Clone)]
struct Listen {
    /// Address and port; `[::]` takes both families.
    #[arg(long, default_value = "[::]:8080")]
    listen: SocketAddr,
    /// Print a line of JSON for each connection, with the address that it came from.
    #[arg(long)]
    log: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    raise_file_limit();
    let result = match App::parse().mode {
        Mode::Http(args) => http::serve(args).await,
        Mode::Echo(args) => tcp::echo(args).await,
        Mode::Banner(args) => tcp::banner(args).await,
        Mode::Sink(args) => tcp::sink(args).await,
        Mode::Source(args) => tcp::source(args).await,
        Mode::EarlyFin(args) => tcp::early_fin(args).await,
        Mode::Websocket(args) => websocket::serve(args).await,
        Mode::Grpc(args) => grpc::serve(args).await,
        Mode::Send(args) => transfer::send(args).await,
        Mode::Receive(args) => transfer::receive(args).await,
        Mode::Upload(args) => upload::upload(args).await,
        Mode::Download(args) => upload::download(args).await,
        Mode::LateSend(args) => transfer::late_send(args).await,
        Mode::Greeted(args) => transfer::greeted(args).await,
        Mode::WebsocketClient(args) => websocket::client(args).await,
        Mode::WebsocketHold(args) => websocket::hold(args).await,
        Mode::GrpcClient(args) => grpc::client(args).await,
        Mode::GrpcCount(args) => grpc::count(args).await,
        Mode::Load(args) => load::load(args).await,
        Mode::Hold(args) => load::hold(args).await,
        Mode::Dns(args) => dns::ask(args).await,
        Mode::Attempt(args) => bypass::attempt(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-app: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Thousands of connections are this program's business; the usual soft limit is 1024 descriptors.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        eprintln!("lab-app: can't raise the limit of open files: {error}");
    }
}
