//! The lab's helper process: becomes a program inside a pod or node (`exec`), or removes a run when its owner is gone
//! (`reap`). Both are started by the lab; their arguments are nobody's interface.
//!
//! For people: `lab-run up`, a lab with a web server on each node, and `lab-run cluster`, a Kubernetes; both to look around in
//! until Ctrl-C.

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use lab::{Cluster, ClusterConfig, Lab, LabConfig, LabError, PodSpec, Program, ServiceSpec};

/// What shells say for a program that could not be run.
const CANNOT_RUN: u8 = 126;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let command = args.next().unwrap_or_default();
    let failure = match command.to_str() {
        Some("exec") => match lab::Entry::from_args(args) {
            Some((entry, program)) => entry.exec(&program),
            None => "exec: not the arguments that the lab makes".to_owned(),
        },
        Some("reap") => {
            let run = args.next().unwrap_or_default();
            match lab::reap(&run.to_string_lossy()) {
                Ok(()) => return ExitCode::SUCCESS,
                Err(failure) => failure,
            }
        }
        Some("up") => match up() {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error.to_string(),
        },
        Some("cluster") => match cluster(args.next()) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => error.to_string(),
        },
        other => match lab::helper(other.unwrap_or_default(), &args.collect::<Vec<_>>()) {
            Some(Ok(code)) => return ExitCode::from(code),
            Some(Err(failure)) => failure,
            None => {
                "usage: lab-run up | cluster [NODES] (what else there is is for the lab itself)".to_owned()
            }
        },
    };
    eprintln!("lab-run: {failure}");
    ExitCode::from(CANNOT_RUN)
}

/// Shows how to enter everything, and holds it until standard input ends (or a signal does: the reaper cleans up).
fn up() -> Result<(), LabError> {
    let lab = Lab::start(LabConfig::default())?;
    lab.add_service(ServiceSpec::new("default", "web").selector("app", "web").port("http", 80, 8080))?;
    println!("{}", lab.name());
    for (number, node) in lab.nodes().enumerate() {
        let name = format!("web-{}", number + 1);
        let pod = node.add_pod(PodSpec::new("default", &name).label("app", "web"))?;
        pod.spawn(Program::new("lab-app").args(["http", "--name", &name]))?;
        let (netns, ip) = (pod.netns().path().display(), pod.ip());
        println!("{name} on {}: {ip}, nsenter --net={netns} curl -s http://10.96.1.0/", node.name());
    }
    println!("press Ctrl-D to end");
    drop(io::read_to_string(io::stdin()));
    Ok(())
}

/// Says how to use it, and holds it as [`up`] does. The argument is how many nodes it has.
fn cluster(nodes: Option<OsString>) -> Result<(), LabError> {
    let mut config = ClusterConfig::default();
    if let Some(nodes) = nodes {
        let number = nodes.to_string_lossy().parse();
        config.nodes =
            number.map_err(|_| LabError::Refused(format!("{nodes:?} is not a number of nodes")))?;
    }
    let cluster = Cluster::start(config)?;
    println!("{}", cluster.name());
    cluster.load_app_image()?;
    cluster.start_dns()?;
    print!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"])?);
    println!("logs of its components: {}/logs", cluster.dir().display());
    println!("an image for pods: {} (lab-app, sh, curl)", lab::APP_IMAGE);
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("kubectl is {}", cluster.kubectl_program().display());
    println!("press Ctrl-C to end");
    drop(io::read_to_string(io::stdin()));
    Ok(())
}
