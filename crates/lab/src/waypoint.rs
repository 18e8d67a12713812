//! A waypoint in the lab: a pod that runs one, with a token of its own, and what the controller makes of a Gateway on a cluster.
//!
//! Whose waypoint it is, the manifests say; the lab only runs it.

use std::fs;

use crate::error::cannot;
use crate::mesh::{Env, await_ready, controller_address, env, is_ready, roots};
use crate::pod::Pod;
use crate::process::{Process, Program};
use crate::{PodSpec, RunError, ServiceSpec, node_api};

/// Where a waypoint takes tunnels.
const PORT: u16 = 15008;

/// The label of a waypoint's pods, with its Gateway's name.
const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";

impl PodSpec {
    /// A pod of the Gateway's waypoint, which acts as the service account of the Gateway's name and is not captured.
    pub fn waypoint(namespace: &str, gateway: &str, name: &str) -> Self {
        Self::new(namespace, name)
            .service_account(gateway)
            .label(GATEWAY, gateway)
            .label("networking.istio.io/tunnel", "http")
            .label("gateway.istio.io/managed", "istio.io-mesh-controller")
            .label("istio.io/dataplane-mode", "none")
    }
}

impl ServiceSpec {
    /// The service of the Gateway's waypoint.
    pub fn waypoint(namespace: &str, gateway: &str) -> Self {
        Self::new(namespace, gateway).selector(GATEWAY, gateway).port("mesh", PORT, PORT)
    }
}

impl Pod {
    /// The environment that a waypoint in this pod gets unless the caller says otherwise.
    pub fn waypoint_env(&self) -> Env {
        let inner = self.inner();
        let run_dir = inner.run.dir.join("pods").join(self.uid()).join("run");
        env([
            ("AIRGLOW_CONTROLLER", controller_address()),
            ("AIRGLOW_ROOT_CERT", roots(inner).display().to_string()),
            ("AIRGLOW_TOKEN", inner.run.dir.join("tokens").join(token_name(self)).display().to_string()),
            ("AIRGLOW_NAMESPACE", self.namespace().to_owned()),
            ("AIRGLOW_POD", self.name().to_owned()),
            ("AIRGLOW_SERVICE_ACCOUNT", self.service_account().to_owned()),
            ("AIRGLOW_RUN_DIR", run_dir.display().to_string()),
        ])
    }

    /// Starts a waypoint in this pod, which has to be one by its manifests, and waits until it is ready. `changes` are set over
    /// [`Self::waypoint_env`].
    pub fn start_waypoint(&self, changes: Env) -> Result<Process, RunError> {
        let inner = self.inner();
        let token: String = (0..4).map(|_| format!("{:08x}", fastrand::u32(..))).collect();
        let path = inner.run.dir.join("tokens").join(token_name(self));
        fs::write(&path, token).map_err(cannot(format!("write {}", path.display())))?;
        let mut environment = self.waypoint_env();
        environment.extend(changes);
        let mut program = Program::new(inner.binaries.path("waypoint", "waypoint")?);
        for (name, value) in environment {
            program = program.env(name, value);
        }
        let process = self.spawn(program)?;
        let socket = inner.run.dir.join("pods").join(self.uid()).join("run").join("admin.sock");
        await_ready(&process, "the waypoint's readiness", || match node_api::listener(&socket) {
            Some(_) => is_ready(&socket),
            None => Err(format!("nobody listens on {}", socket.display())),
        })?;
        Ok(process)
    }
}

/// The file of a pod's own token, which no node's name can be.
fn token_name(pod: &Pod) -> String {
    format!("{}:{}", pod.namespace(), pod.name())
}
