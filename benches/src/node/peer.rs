//! Another ztunnel on a node of the lab: capture rules in its pods, discovery and certificates from our controller, and
//! what a CNI would tell it.
//!
//! Its settings are its own defaults, except for names, addresses and DNS, which has no part in what is measured.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use lab::{Node, Pod, Process, Program, Slice, wait_until};

use super::zds::{Connection, Introduction, Listener};

/// How long it may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Where it says whether it is ready.
const READINESS_PORT: u16 = 15021;

/// What a CNI of Istio installs in a pod, in nftables' words. Packets of the proxy carry mark 0x539; connections that it
/// makes to the application under a client's address are remembered by connection mark 0x111, so that the application's
/// replies find back to it. The rest of the pod's TCP is redirected: outbound to 15001, inbound to 15006 unless it is
/// for 15008.
const RULES: &str = "\
table ip peer_mangle {
  chain prerouting {
    type filter hook prerouting priority mangle;
    meta mark & 0xfff == 0x539 ct mark set 0x111
  }
  chain output {
    type route hook output priority mangle;
    ct mark & 0xfff == 0x111 meta mark set ct mark
  }
}
table ip peer_nat {
  chain prerouting {
    type nat hook prerouting priority dstnat;
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
  }
  chain output {
    type nat hook output priority -100;
    meta mark & 0xfff == 0x111 accept
    ip daddr != 127.0.0.1 oifname \"lo\" accept
    ip daddr != 127.0.0.1 meta l4proto tcp meta mark & 0xfff != 0x539 redirect to :15001
  }
}
";

/// The proxy of one node.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) process: Process,
    _pods: Connection,
}

impl Peer {
    /// Starts `program` on a node for these pods of it and waits until it is ready.
    pub(crate) fn start(program: &Path, node: &Node, pods: &[&Pod]) -> anyhow::Result<Self> {
        ensure!(program.is_file(), "--peer: {} is not a file", program.display());
        for pod in pods {
            redirect(node, pod).with_context(|| format!("install capture rules in {}", pod.name()))?;
        }
        let path = node.run_dir().join("zds.sock");
        let listener = Listener::bind(&path)?;
        let process = node.spawn(Slice::System, with_env(program, node, &path)?)?;
        let known: Vec<_> = pods.iter().map(|pod| introduction(pod)).collect();
        let ready = listener.introduce(&known).and_then(|connection| {
            wait_until("readiness of the peer", READY_WITHIN, || is_ready(node))?;
            Ok(connection)
        });
        match ready {
            Ok(connection) => Ok(Self { process, _pods: connection }),
            Err(error) => {
                let output = process.kill()?;
                Err(error.context(format!(
                    "the peer on {} said: {}{}",
                    node.name(),
                    output.stdout,
                    output.stderr
                )))
            }
        }
    }
}

fn with_env(program: &Path, node: &Node, socket: &Path) -> anyhow::Result<Program> {
    let ours = node.ztunnel_env();
    let of = |name: &str| ours.get(name).with_context(|| format!("the lab no longer sets {name}"));
    let (controller, root, token) =
        (of("AIRGLOW_CONTROLLER")?, of("AIRGLOW_ROOT_CERT")?, of("AIRGLOW_TOKEN")?);
    let ip = node.ips()[0].to_string();
    Ok(Program::new(program)
        .env("NODE_NAME", node.name())
        .env("INSTANCE_IP", ip)
        .env("XDS_ADDRESS", controller)
        .env("CA_ADDRESS", controller)
        .env("XDS_ROOT_CA", root)
        .env("CA_ROOT_CA", root)
        .env("AUTH_TOKEN", token)
        .env("INPOD_UDS", socket)
        .env("ISTIO_META_DNS_CAPTURE", "false")
        .env("IPV6_ENABLED", "false"))
}

fn redirect(node: &Node, pod: &Pod) -> anyhow::Result<()> {
    let path = node.run_dir().join(format!("{}.nft", pod.uid()));
    fs::write(&path, RULES).with_context(|| format!("write {}", path.display()))?;
    let commands = [
        format!("nft -f {}", path.display()),
        "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100".to_owned(),
        "ip route add local 0.0.0.0/0 dev lo table 100".to_owned(),
    ];
    for command in commands {
        let words: Vec<_> = command.split(' ').collect();
        let output = pod.run(words.as_slice())?;
        ensure!(output.success(), "`{command}`: {}", output.stderr.trim());
    }
    Ok(())
}

fn introduction<'a>(pod: &'a Pod) -> Introduction<'a> {
    Introduction {
        uid: pod.uid(),
        namespace: pod.namespace(),
        name: pod.name(),
        service_account: pod.service_account(),
        netns: pod.netns().path(),
    }
}

fn is_ready(node: &Node) -> anyhow::Result<()> {
    let address = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), READINESS_PORT);
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&address, READY_WITHIN)?;
        stream.set_read_timeout(Some(READY_WITHIN))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n")?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).map(|_| reply)
    };
    let reply: String = node.netns().run(ask)??;
    ensure!(reply.starts_with("HTTP/1.1 200"), "it answers {reply:?}");
    Ok(())
}
