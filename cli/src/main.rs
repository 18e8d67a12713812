//! `airglow`, the command line: reads arguments and the environment, chooses a command, says why it failed.
//!
//! What a command does is its module's.

mod admin_client;
mod check;
mod cluster;
mod demo;
mod events;
mod flows;
mod install;
mod interrupt;
mod mesh;
mod metrics_text;
mod nodes;
mod output;
mod progress;
mod show;
mod term;
mod top;
mod trace;
mod uninstall;
mod waypoint;
mod why;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use daemon::config::{Environment, Vars};

use crate::interrupt::{INTERRUPTED, Interrupt, Interrupted};
use crate::output::Where;
use crate::show::What;
use crate::term::Style;

/// Ambient service mesh: see what it does, and watch it work.
#[derive(Parser, Debug)]
#[command(name = "airglow", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// No colours, also on a terminal (as with a NO_COLOR variable).
    #[arg(long, global = true)]
    no_color: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Show the whole system on this machine: two nodes, a small web shop, a mesh. Needs root; leaves nothing behind.
    Demo(demo::Demo),
    /// Is this Kubernetes cluster fit for Airglow, and is the Airglow in it well? One line per fact; exit code 1 if not.
    Check(check::Check),
    /// Put Airglow into a Kubernetes cluster, or upgrade it, and wait until it is ready.
    Install(install::Install),
    /// Take Airglow from a Kubernetes cluster: from each node, then every object. Refused while a namespace is in the mesh.
    Uninstall(uninstall::Uninstall),
    /// Live L4 flows per node: who talks to whom, as whom, how much, how fast, and what policy says.
    Top(top::Top),
    /// Single requests through waypoints as they happen, each with every decision about it: rule, faults, attempts, endpoint, timings.
    Trace(trace::Trace),
    /// Why a pod can or can't connect somewhere: the decision on both nodes, and the object to edit. Exit code 1: it can't.
    Why(why::Why),
    /// Waypoints, which do for a namespace, a service or a service account what needs to know HTTP: ask for them, see how they are.
    Waypoint(waypoint::Waypoint),
    /// Workloads that the mesh knows.
    Workloads(Where),
    /// Services that the mesh knows.
    Services(Where),
    /// Policies that nodes enforce.
    Policies(Where),
    /// Pods of each node and whether they are in the mesh.
    Pods(Where),
    /// Certificates that each node holds.
    Certs(Where),
    /// Connections that are open now.
    Connections(Where),
    /// What there is to say: Kubernetes Events of Airglow, policies that can't be enforced, pods that can't be enrolled.
    Events(Where),
    /// Print what makes a shell complete these commands, such as `source <(airglow completion bash)`.
    Completion {
        /// Which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// What standard output is.
#[derive(Clone, Copy, Debug)]
struct Terminal {
    /// Whether lines on it can move.
    live: bool,
    /// How text on it may look.
    style: Style,
}

impl Terminal {
    fn new(is_terminal: bool, no_color: bool, vars: &dyn Vars) -> Self {
        let dumb = vars.get("TERM").is_none_or(|term| term == "dumb");
        let no_color = no_color || vars.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        let live = is_terminal && !dumb;
        Self { live, style: Style::new(live, no_color, dumb) }
    }

    /// What stands before a line about something that is as it should be.
    fn sign(self) -> &'static str {
        if self.live { "✓" } else { "ok" }
    }
}

fn main() -> ExitCode {
    let vars = Environment::read();
    let cli = Cli::parse();
    let stdout = Terminal::new(io::stdout().is_terminal(), cli.no_color, &vars);
    let stderr = Terminal::new(io::stderr().is_terminal(), cli.no_color, &vars);
    match run(&cli.command, stdout, stderr, &vars) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("airglow: {error:#}");
            ExitCode::from(if error.is::<Interrupted>() { INTERRUPTED } else { 2 })
        }
    }
}

fn run(command: &Command, stdout: Terminal, stderr: Terminal, vars: &dyn Vars) -> anyhow::Result<ExitCode> {
    let show = |what, at: &Where| show::run(what, at, stdout.style, vars).map(|()| ExitCode::SUCCESS);
    match command {
        Command::Demo(args) => demo::run(args, stdout, stderr, &Interrupt::listen()?),
        Command::Check(args) => check::run(args, stdout, vars),
        Command::Install(args) => install::run(args, stdout, vars, &Interrupt::listen()?),
        Command::Uninstall(args) => uninstall::run(args, stdout, vars, &Interrupt::listen()?),
        Command::Top(args) => top::run(args, stdout, vars, &Interrupt::listen()?).map(|()| ExitCode::SUCCESS),
        Command::Trace(args) => {
            trace::run(args, stdout, vars, &Interrupt::listen()?).map(|()| ExitCode::SUCCESS)
        }
        Command::Why(args) => why::run(args, stdout, vars),
        Command::Waypoint(args) => waypoint::run(args, stdout, vars, &Interrupt::listen()?),
        Command::Workloads(at) => show(What::Workloads, at),
        Command::Services(at) => show(What::Services, at),
        Command::Policies(at) => show(What::Policies, at),
        Command::Pods(at) => show(What::Pods, at),
        Command::Certs(at) => show(What::Certificates, at),
        Command::Connections(at) => show(What::Connections, at),
        Command::Events(at) => events::run(at, stdout.style, vars).map(|()| ExitCode::SUCCESS),
        Command::Completion { shell } => complete(*shell),
    }
}

fn complete(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "airglow", &mut script);
    progress::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_understood() {
        let parse = |words: &str| Cli::try_parse_from(words.split(' ')).map(|cli| format!("{cli:?}"));
        let top = parse("airglow top --node n1 --run-dir /run/x -o json --interval 1").unwrap();
        for part in ["node: Some(\"n1\")", "run_dir: Some(\"/run/x\")", "form: Json", "interval: 1.0"] {
            assert!(top.contains(part), "{top}");
        }
        let demo = parse("airglow demo --keep --no-color").unwrap();
        assert!(demo.contains("keep: true") && demo.contains("no_color: true"), "{demo}");
        let check = parse("airglow check --kubeconfig /k --context c -n mesh -o json").unwrap();
        for part in ["kubeconfig: Some(\"/k\")", "context: Some(\"c\")", "namespace: \"mesh\"", "form: Json"]
        {
            assert!(check.contains(part), "{check}");
        }
        let waypoint = parse("airglow waypoint apply -n shop --for-service-account reviews").unwrap();
        assert!(waypoint.contains("for_service_account: Some(\"reviews\")"), "{waypoint}");
        assert!(parse("airglow certs").unwrap().contains("Certs("));
        let why = parse("airglow why shop/web pay:80 --context c -o yaml").unwrap();
        for part in ["pod: \"shop/web\"", "to: \"pay:80\"", "form: Yaml"] {
            assert!(why.contains(part), "{why}");
        }
        let trace = parse("airglow trace -n shop deploy/x --count 3").unwrap();
        for part in ["namespace: \"shop\"", "kind: \"deployment\", name: \"x\"", "count: Some(3)"] {
            assert!(trace.contains(part), "{trace}");
        }
        assert!(parse("airglow pods -n shop -o wide").unwrap().contains("namespace: Some(\"shop\")"));
        for wrong in [
            "airglow",
            "airglow top --interval 0",
            "airglow pods -o xml",
            "airglow demo --keep --json",
            "airglow demo --waypoint --kubernetes",
            "airglow check -n a/b",
            "airglow pods -n shop -A",
            "airglow top --run-dir /x --context c",
            "airglow why shop/web",
            "airglow waypoint",
            "airglow waypoint delete",
            "airglow waypoint list -n shop -A",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shells_learn_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "airglow", &mut script);
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("why") && script.contains("connections"), "{shell}");
        }
    }

    #[test]
    fn nothing_that_is_not_a_terminal_gets_colours() {
        let look = |is_terminal, vars: &[(&'static str, &'static str)]| {
            let vars: BTreeMap<&str, &str> = vars.iter().copied().collect();
            let terminal = Terminal::new(is_terminal, false, &vars);
            (terminal.live, terminal.style.red("x") != "x")
        };
        assert_eq!(look(true, &[("TERM", "xterm")]), (true, true));
        assert_eq!(look(true, &[("TERM", "xterm"), ("NO_COLOR", "1")]), (true, false));
        assert_eq!(look(true, &[("TERM", "xterm"), ("NO_COLOR", "")]), (true, true));
        assert_eq!(look(true, &[("TERM", "dumb")]), (false, false));
        assert_eq!(look(false, &[("TERM", "xterm")]), (false, false));
    }
}
