//! What a cluster gets on request: an image for pods of tests, cluster DNS, and Helm.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::Program;
use crate::cluster::{Cluster, Image, await_up};
use crate::error::{LabError, cannot};
use crate::inner::without_proxies;
use crate::topology::DNS_VIP;

/// An image for pods of tests, which [`Cluster::load_app_image`] puts on the nodes: `lab-app`, a shell, and this machine's curl
/// and openssl.
/// It runs as user 65532 and is never pulled (`imagePullPolicy: IfNotPresent` is the default for its tag).
pub const APP_IMAGE: &str = "airglow.test/app:1";

/// What else there is in it. Programs of this machine, with the libraries that they ask for.
const APP_TOOLS: [&str; 6] = ["cat", "curl", "env", "openssl", "sh", "sleep"];

/// The image that `coredns.yaml` names.
const DNS_IMAGE: &str = "airglow.test/coredns:1";

/// How long the cluster's DNS may take to be ready. Two seconds on an idle machine.
const DNS_WITHIN: Duration = Duration::from_secs(120);

impl Cluster {
    /// Puts [`APP_IMAGE`] on every node.
    pub fn load_app_image(&self) -> Result<(), LabError> {
        let archive = self.dir().join("app.tar");
        let mut image = Image::new(APP_IMAGE).file("/bin/lab-app", &self.shared.tools.lab_app);
        for name in APP_TOOLS {
            image = image.file(format!("/bin/{name}"), format!("/bin/{name}"));
        }
        image.with_libraries()?.entrypoint(["lab-app"]).user("65532").write(&archive)?;
        self.load_image(&archive)
    }

    /// Installs CoreDNS and waits until it answers. Until then pods have no DNS.
    pub fn start_dns(&self) -> Result<(), LabError> {
        let program = self.shared.tools.programs.on_request("coredns")?;
        let archive = self.dir().join("coredns.tar");
        Image::new(DNS_IMAGE).file("/coredns", program).entrypoint(["/coredns"]).write(&archive)?;
        self.load_image(&archive)?;
        self.apply(include_str!("coredns.yaml"))?;
        self.rolled_out("kube-system", "deployment/coredns", DNS_WITHIN)?;
        // Its pod is ready before every node leads there.
        let ask = [
            "dns",
            "--server",
            &format!("{}:53", DNS_VIP.v4),
            "--name",
            "kubernetes.default.svc.cluster.local",
        ];
        self.nodes().try_for_each(|node| {
            await_up(
                &format!("an answer of the cluster's DNS on {}", node.name()),
                DNS_WITHIN,
                || Ok(()),
                || {
                    let lab_app = Program::new(&self.shared.tools.lab_app).args(ask);
                    let output = node.run(lab_app).map_err(|error| error.to_string())?;
                    if output.stdout.contains("10.96.0.1") {
                        Ok(())
                    } else {
                        Err(format!("{}{}", output.stdout, output.stderr))
                    }
                },
            )
        })
    }

    /// Runs Helm as the administrator and returns what it printed.
    pub fn helm(&self, args: &[&str]) -> Result<String, LabError> {
        let program = self.shared.tools.programs.on_request("helm")?;
        let own = self.dir().join("helm");
        let mut command = Command::new(program);
        command.arg("--kubeconfig").arg(self.kubeconfig()).args(args).stdin(Stdio::null());
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(name, own.join(name));
        }
        without_proxies(&mut command);
        let output = command.output().map_err(cannot("run helm"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LabError::Tool { command: format!("helm {}", args.join(" ")), stderr })
    }
}
