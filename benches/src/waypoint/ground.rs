//! What is measured, set up: a lab with a client, servers, our waypoint with a controller, and the other proxy.
//!
//! Proxies run on one core, the load on another, all in one network namespace. Both proxies follow the same routes.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Env, Lab, LabConfig, Pod, PodSpec, Process, Program, ServiceSpec, Tuning, wait_until};
use model::identity::Identity;

use super::certificates::{self, TRUST_DOMAIN};
use super::load::abuses::{Abuse, Inside};
use super::load::client::Protocol;
use super::load::origin::{HBONE_PORT, HTTP1_PORT, HTTP2_PORT};
use super::manifests::{GATEWAY, HTTP_PORT, HTTP2_SERVICE_PORT, NAMESPACE, Routes, crowd};
use super::shapes::{Mesh, Shape};
use super::{envoy, measure, say};
use crate::resident;

/// How long anything may take until it answers, on a machine where much else runs.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Where programs run: proxies on one core, the load on another, if need be before all other programs of the machine; and what must
/// not be in the load's way on what the load leaves.
const PROXIES: &[&str] = &["taskset", "-c", "0"];
const LOAD: &[&str] = &["taskset", "-c", "1"];
const PREFERRED: &[&str] = &["chrt", "--rr", "1", "taskset", "-c", "1"];
const ASIDE: &[&str] = &["chrt", "--idle", "0", "taskset", "-c", "1"];

/// Lines of what a process complains of that are shown.
const COMPLAINTS: usize = 3;

const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// What there is beside what is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scale {
    /// Routes of HTTP/1.1 in tunnels that match other paths.
    pub(crate) routes: usize,
    /// Endpoints of a service that nobody asks for.
    pub(crate) endpoints: usize,
}

/// Where the servers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origins {
    pub(crate) plain: [IpAddr; 2],
    pub(crate) tunnelled: [IpAddr; 2],
}

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Airglow,
    Envoy,
}

/// A proxy that runs.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    /// What it can be asked in.
    takes: &'static [Mesh],
    pub(crate) pod: Pod,
    pub(crate) process: Process,
}

/// Everything that is measured, and the lab that it runs in.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) proxies: Vec<Proxy>,
    pub(crate) client: Pod,
    attacker: Pod,
    pub(crate) servers: Vec<Process>,
    pub(crate) lab: Lab,
    certificates: PathBuf,
    envoy: Option<PathBuf>,
    origins: Origins,
    /// The services' addresses, by [`Mesh`]: plain, tunnelled. And the one that attackers ask for.
    services: [IpAddr; 3],
}

impl Ground {
    /// Sets everything up and waits until each proxy answers.
    pub(crate) fn start(envoy: Option<&Path>) -> anyhow::Result<Self> {
        ensure!(std::thread::available_parallelism()?.get() > 1, "proxies and load need a core each");
        let tuning = Tuning::bench();
        let lab = Lab::start(LabConfig { nodes: 1, ipv6: false, capture: false, tuning, binaries: None })?;
        let state = lab.dir().join("controller");
        let certificates = lab.dir().join("certificates");
        certificates::issue(&state, &certificates, NAMESPACE, &["client", "attacker", "server", "waypoint"])?;
        lab.start_controller(Env::new())?;
        lab.apply_yaml("gateway.yaml", GATEWAY)?;
        let asking = |name: &str| lab.node(0).add_pod(PodSpec::new(NAMESPACE, name).service_account(name));
        let (client, attacker) = (asking("client")?, asking("attacker")?);
        move_in(&client, attacker.ip())?;
        let pods = |app: &str, tunnelled: bool, place| -> anyhow::Result<([IpAddr; 2], Vec<Process>)> {
            let mut servers = Vec::new();
            let mut ips = [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 2];
            for (ip, version) in ips.iter_mut().zip(["one", "two"]) {
                let pod = lab.node(0).add_pod(server(app, version, tunnelled))?;
                *ip = pod.ip();
                move_in(&client, *ip)?;
                let args = ["waypoint-origin", "--ip", &ip.to_string(), "--certificate"].map(str::to_owned);
                let program = at(place, &own()?, &args).args([certificates.join("server")]);
                let process = client.spawn(program)?;
                process.wait_for_line("serving", READY_WITHIN)?;
                servers.push(process);
            }
            Ok((ips, servers))
        };
        let ((plain, mut servers), (tunnelled, others)) =
            (pods("plain", false, LOAD)?, pods("server", true, LOAD)?);
        servers.extend(others);
        pods("attacked", true, ASIDE)?;
        let origins = Origins { plain, tunnelled };
        let services = [service(&lab, "plain")?, service(&lab, "server")?, service(&lab, "attacked")?];
        let own_service = ServiceSpec::new(NAMESPACE, "waypoint").selector(GATEWAY_NAME, "waypoint");
        lab.add_service(own_service.port("mesh", HBONE_PORT, HBONE_PORT))?;
        let (proxies, envoy) = (Vec::new(), envoy.map(Path::to_owned));
        let mut ground =
            Self { proxies, client, attacker, servers, lab, certificates, envoy, origins, services };
        ground.route(&Routes::default())?;
        ground.proxies.push(ground.start_airglow("waypoint-0")?);
        ground.proxies.push(ground.start_plain("waypoint-plain")?);
        if ground.envoy.is_some() {
            ground.proxies.push(ground.start_envoy("envoy-0", Scale::default())?);
        }
        for proxy in &ground.proxies {
            ground.await_answers(proxy)?;
        }
        Ok(ground)
    }

    /// Says what becomes of requests, for all services.
    pub(crate) fn route(&self, routes: &Routes) -> anyhow::Result<()> {
        for service in ["plain", "server", "attacked"] {
            self.lab.apply_yaml(&format!("route-{service}.yaml"), &routes.of(service))?;
        }
        Ok(())
    }

    /// The proxies that can be asked so.
    pub(crate) fn taking(&self, mesh: Mesh) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter().filter(move |proxy| proxy.takes.contains(&mesh))
    }

    /// Where the client asks, and for what: the proxy's address, and the authority of a tunnel if it is to make one.
    pub(crate) fn address(&self, proxy: &Proxy, shape: &Shape) -> (SocketAddr, Option<SocketAddr>) {
        let http2 = shape.protocol != Protocol::Http1;
        let service = self.services[usize::from(shape.mesh == Mesh::Hbone)];
        let authority = SocketAddr::new(service, if http2 { HTTP2_SERVICE_PORT } else { HTTP_PORT });
        match (proxy.kind, shape.mesh) {
            (Kind::Envoy, Mesh::Plain) => {
                let port = if http2 { envoy::PLAIN_HTTP2 } else { envoy::PLAIN_HTTP1 };
                (SocketAddr::new(proxy.pod.ip(), port), None)
            }
            (Kind::Airglow, Mesh::Plain) => (authority, None),
            (Kind::Airglow | Kind::Envoy, Mesh::Hbone) => {
                (SocketAddr::new(proxy.pod.ip(), HBONE_PORT), Some(authority))
            }
        }
    }

    /// A program that asks, on the load's core.
    pub(crate) fn load(&self, shape: &Shape, args: &[String]) -> anyhow::Result<Process> {
        let place = if shape.preferred { PREFERRED } else { LOAD };
        let program = at(place, &own()?, &["waypoint-client".to_owned()]);
        Ok(self.client.spawn(self.who(program, &self.client, "client").args(args))?)
    }

    /// Gives a proxy and who is behind it precedence over all other programs, as a preferred load has it.
    pub(crate) fn prefer(&self, proxy: &Proxy) -> anyhow::Result<()> {
        for process in self.servers.iter().chain([&proxy.process]) {
            let pid = process.pid().to_string();
            let output = self.client.run(["chrt", "--all-tasks", "--rr", "--pid", "1", &pid])?;
            ensure!(output.success(), "can't prefer {pid}: {}", output.stderr.trim());
        }
        Ok(())
    }

    /// A program that does this to a proxy, on what the load leaves of its core.
    pub(crate) fn attack(&self, proxy: &Proxy, abuse: &Abuse) -> anyhow::Result<Process> {
        let port = if abuse.inside == Inside::Http2 { HTTP2_SERVICE_PORT } else { HTTP_PORT };
        let authority = SocketAddr::new(self.services[2], port).to_string();
        let to = SocketAddr::new(proxy.pod.ip(), HBONE_PORT).to_string();
        let program = at(ASIDE, &own()?, &["waypoint-attacker".to_owned()]);
        let program = self.who(program, &self.attacker, "attacker").args(["--proxy", &to]);
        Ok(self.client.spawn(program.args(["--authority", &authority, "--abuse", abuse.name]))?)
    }

    /// Who a program asks as.
    fn who(&self, program: Program, pod: &Pod, account: &str) -> Program {
        let program = program.args(["--from", &pod.ip().to_string(), "--certificate"]);
        program.args([self.certificates.join(account)])
    }

    /// Waits until a proxy answers in every shape that it can.
    pub(crate) fn await_answers(&self, proxy: &Proxy) -> anyhow::Result<()> {
        for mesh in proxy.takes {
            let shape = measure::probe(*mesh);
            wait_until(&format!("answers of {:?}", proxy.kind), READY_WITHIN, || {
                measure::once(self, proxy, &shape).map_err(|error| format!("{error:#}"))
            })
            .inspect_err(|_| self.say_complaints(proxy))?;
        }
        say(&format!("{:?} answers; process {}", proxy.kind, proxy.process.pid()));
        Ok(())
    }

    /// What a proxy and the servers have complained of last.
    fn say_complaints(&self, proxy: &Proxy) {
        for process in self.servers.iter().chain([&proxy.process]) {
            let output = process.output();
            output
                .stderr
                .lines()
                .rev()
                .take(COMPLAINTS)
                .for_each(|line| say(&format!("  {}: {line}", process.pid())));
        }
    }

    /// Another process of the same kind that knows so much.
    pub(crate) fn start_another(&self, proxy: &Proxy, scale: Scale) -> anyhow::Result<Proxy> {
        let name = format!("{:?}-{}-{}", proxy.kind, scale.routes, scale.endpoints).to_lowercase();
        match proxy.kind {
            Kind::Airglow => self.start_airglow(&name),
            Kind::Envoy => self.start_envoy(&name, scale),
        }
    }

    /// Envoy follows its file: puts one with another in the place of the one that runs, which is returned.
    pub(crate) fn replace_envoy(&mut self, scale: Scale) -> anyhow::Result<Option<Proxy>> {
        let Some(index) = self.proxies.iter().position(|proxy| proxy.kind == Kind::Envoy) else {
            return Ok(None);
        };
        let other = self.start_another(&self.proxies[index], scale)?;
        self.await_answers(&other)?;
        Ok(Some(std::mem::replace(&mut self.proxies[index], other)))
    }

    /// Ends the one that took its place.
    pub(crate) fn put_back(&mut self, replaced: Option<Proxy>) -> anyhow::Result<()> {
        let Some(replaced) = replaced else { return Ok(()) };
        let found = self.proxies.iter_mut().find(|proxy| proxy.kind == replaced.kind);
        let other = std::mem::replace(found.context("it was replaced")?, replaced);
        other.process.kill()?;
        Ok(other.pod.remove()?)
    }

    /// Ends our proxies as a node that is shut down does: one that can't end has not been measured as what it is.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        for proxy in self.proxies.iter().filter(|proxy| proxy.kind == Kind::Airglow) {
            proxy.process.terminate().with_context(|| format!("end {}", proxy.pod.name()))?;
        }
        Ok(())
    }

    /// Waits until everybody knows what was said last.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        let controller = self.lab.controller().context("the controller has gone")?;
        let proxies = self.proxies.iter().map(|proxy| proxy.process.pid());
        resident::settle("the bench", &proxies.chain([controller.pid()]).collect::<Vec<_>>())
    }

    /// Makes a guarded service of so many endpoints.
    pub(crate) fn gather(&self, endpoints: usize) -> anyhow::Result<()> {
        crowd(endpoints).iter().try_for_each(|(file, text)| Ok(self.lab.apply_yaml(file, text)?))
    }

    /// Takes it away.
    pub(crate) fn disperse(&self, endpoints: usize) -> anyhow::Result<()> {
        crowd(endpoints).iter().try_for_each(|(file, _)| Ok(self.lab.delete_yaml(file)?))
    }

    /// Our waypoint.
    fn start_airglow(&self, name: &str) -> anyhow::Result<Proxy> {
        self.start_waypoint(name, &[Mesh::Hbone], silent(PROXIES, &product()?, &[]))
    }

    /// One that is not measured and takes no time from the others.
    pub(crate) fn start_aside(&self, name: &str) -> anyhow::Result<Proxy> {
        self.start_waypoint(name, &[Mesh::Hbone], silent(ASIDE, &product()?, &[]))
    }

    /// The same without tunnels, at the address of the service whose servers have none.
    fn start_plain(&self, name: &str) -> anyhow::Result<Proxy> {
        let service = self.services[0];
        move_in(&self.client, service)?;
        let at = |port| SocketAddr::new(service, port).to_string();
        let client = Identity::new(TRUST_DOMAIN, NAMESPACE, "client")?.to_string();
        let (http1, http2) = (at(HTTP_PORT), at(HTTP2_SERVICE_PORT));
        let args = ["plain-waypoint", "--service", &http1, "--service", &http2, "--client", &client];
        self.start_waypoint(name, &[Mesh::Plain], silent(PROXIES, &own()?, &args.map(str::to_owned)))
    }

    /// A process that is set as a waypoint is, with one data thread.
    fn start_waypoint(
        &self,
        name: &str,
        takes: &'static [Mesh],
        mut program: Program,
    ) -> anyhow::Result<Proxy> {
        let spec = PodSpec::new(NAMESPACE, name).service_account("waypoint");
        let spec = spec.label(GATEWAY_NAME, "waypoint").label("networking.istio.io/tunnel", "http");
        let spec = spec.label("gateway.istio.io/managed", "istio.io-mesh-controller");
        let pod = self.lab.node(0).add_pod(spec.label("istio.io/dataplane-mode", "none"))?;
        move_in(&self.client, pod.ip())?;
        let mut environment = pod.waypoint_env();
        let token = environment.get("AIRGLOW_TOKEN").context("the lab no longer names a token")?;
        fs::write(token, format!("the token of {name}")).with_context(|| format!("write {token}"))?;
        let ports =
            [("AIRGLOW_LISTEN", HBONE_PORT), ("AIRGLOW_METRICS", 15020), ("AIRGLOW_READINESS", 15021)];
        let listens =
            ports.map(|(name, port)| (name.to_owned(), SocketAddr::new(pod.ip(), port).to_string()));
        environment.extend(listens);
        environment.insert("AIRGLOW_THREADS".into(), "1".into());
        for (name, value) in environment {
            program = program.env(name, value);
        }
        Ok(Proxy { kind: Kind::Airglow, takes, process: self.client.spawn(program)?, pod })
    }

    /// Envoy, with one worker.
    fn start_envoy(&self, name: &str, scale: Scale) -> anyhow::Result<Proxy> {
        let path = self.envoy.as_deref().context("--envoy was not given")?;
        ensure!(path.is_file(), "--envoy: {} is not a file", path.display());
        let spec = PodSpec::new(NAMESPACE, name).service_account("waypoint");
        let pod = self.lab.node(0).add_pod(spec)?;
        let config = self.lab.dir().join(format!("{name}.json"));
        move_in(&self.client, pod.ip())?;
        let bootstrap = envoy::bootstrap(pod.ip(), &self.certificates.join("waypoint"), &self.origins, scale);
        fs::write(&config, serde_json::to_string_pretty(&bootstrap)?)?;
        let args = [
            "-c",
            &config.display().to_string(),
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "-l",
            "error",
        ];
        let process = self.client.spawn(silent(PROXIES, path, &args.map(str::to_owned)))?;
        Ok(Proxy { kind: Kind::Envoy, takes: &[Mesh::Plain, Mesh::Hbone], pod, process })
    }
}

fn server(app: &str, version: &str, tunnelled: bool) -> PodSpec {
    let spec = PodSpec::new(NAMESPACE, format!("{app}-{version}")).service_account("server");
    let spec = spec.label("app", app).label("version", version);
    if tunnelled { spec.label("networking.istio.io/tunnel", "http") } else { spec }
}

/// Everybody runs in the client's network namespace, each at a pod's address: what the kernel does between namespaces is no
/// proxy's doing.
fn move_in(client: &Pod, ip: IpAddr) -> anyhow::Result<()> {
    let address = format!("{ip}/32");
    let output = client.run(["ip", "address", "replace", &address, "dev", "lo"])?;
    ensure!(output.success(), "can't have {address}: {}", output.stderr.trim());
    Ok(())
}

/// The service of an app that the waypoint guards, and one per version.
fn service(lab: &Lab, app: &str) -> anyhow::Result<IpAddr> {
    let spec = |name: &str| {
        let spec = ServiceSpec::new(NAMESPACE, name).selector("app", app);
        spec.port("http", HTTP_PORT, HTTP1_PORT).port("http2", HTTP2_SERVICE_PORT, HTTP2_PORT)
    };
    for version in ["one", "two"] {
        lab.add_service(spec(&format!("{app}-{version}")).selector("version", version))?;
    }
    let service = lab.add_service(spec(app).label("istio.io/use-waypoint", "waypoint"))?;
    service.ips.first().copied().context("a service without an address")
}

/// This executable, whose other commands make and take load.
fn own() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("find this executable")
}

/// The product.
fn product() -> anyhow::Result<PathBuf> {
    let program = own()?.with_file_name("waypoint");
    ensure!(program.is_file(), "{} is not there: build it too", program.display());
    Ok(program)
}

fn at(place: &[&str], program: &Path, args: &[String]) -> Program {
    Program::new(place[0]).args(&place[1..]).args([program]).args(args)
}

/// A proxy. What it logs is written and not kept: for both kinds alike.
fn silent(place: &[&str], program: &Path, args: &[String]) -> Program {
    const SCRIPT: &str = "exec \"$@\" > /dev/null";
    Program::new("sh").args(["-c", SCRIPT, "sh"]).args(place).args([program]).args(args)
}
