//! The Gateway API on a cluster: the definitions of its kinds, and its own conformance suite.
//!
//! Holds no case and judges none.

use std::process::{Command, Stdio};

use crate::cluster::{Cluster, Image};
use crate::error::{LabError, cannot};
use crate::inner::without_proxies;

/// What the suite's pods run, as its manifests name it.
const ECHO_IMAGE: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";

/// What a run of the suite said.
#[derive(Clone, Debug)]
pub struct Conformance {
    /// Whether every case that was run has passed.
    pub passed: bool,
    /// All that it printed.
    pub said: String,
}

impl Cluster {
    /// Installs the definitions of the Gateway API's kinds, as its standard channel has them.
    pub fn add_gateway_api(&self) -> Result<(), LabError> {
        let definitions = self.shared.tools.programs.on_request("gateway-api.yaml")?;
        let definitions = definitions.display().to_string();
        // They are longer than the annotation that an ordinary apply keeps of them may be.
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &definitions])?;
        let all = ["wait", "crd", "--all", "--for=condition=Established", "--timeout=60s"];
        self.kubectl(&all).map(drop)
    }

    /// Puts the program that the suite's pods run on every node.
    pub fn load_conformance_image(&self) -> Result<(), LabError> {
        let echo = self.shared.tools.programs.on_request("gateway-api-echo")?;
        let (certificate, key) = (self.dir().join("echo.crt"), self.dir().join("echo.key"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-subj", "/CN=echo", "-days", "30", "-out"])
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .output()
            .map_err(cannot("run openssl"))?;
        if !made.status.success() {
            let stderr = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            return Err(LabError::Tool { command: "openssl req -x509".to_owned(), stderr });
        }
        let archive = self.dir().join("echo.tar");
        Image::new(ECHO_IMAGE)
            .file("/bin/client", echo)
            .file("/bin/server", echo)
            .file("/cert.crt", certificate)
            .file("/cert.key", key)
            .entrypoint(["server"])
            .write(&archive)?;
        self.load_image(&archive)
    }

    /// Runs the suite with these flags, and no others.
    pub fn conformance(&self, flags: &[&str]) -> Result<Conformance, LabError> {
        let program = self.shared.tools.programs.on_request("gateway-api-conformance")?;
        let mut command = Command::new(program);
        command.arg("-test.v").args(flags).env("KUBECONFIG", self.kubeconfig()).stdin(Stdio::null());
        without_proxies(&mut command);
        let output = command.output().map_err(cannot("run the Gateway API's conformance suite"))?;
        let said = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        Ok(Conformance { passed: output.status.success(), said: said.concat() })
    }
}
