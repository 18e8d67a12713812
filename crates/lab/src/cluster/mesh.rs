//! What a mesh needs to be installed on a cluster of the lab: images of its programs as they are built, and the values of its
//! chart that fit these nodes. Installs nothing: how that is done is for people, and for tests, to choose.

use std::path::Path;

use crate::cluster::{Cluster, Image};
use crate::error::LabError;

/// Where [`Cluster::load_mesh_images`] puts images, as the chart's `image.registry` and `image.tag`.
const REGISTRY: &str = "airglow.test";
const TAG: &str = "test";

/// What glibc looks names up with, which it loads only then. `make images` links without it.
const RESOLVER: [&str; 2] = ["/lib/x86_64-linux-gnu/libresolv.so.2", "/lib/x86_64-linux-gnu/libnss_dns.so.2"];

impl Cluster {
    /// Puts images of ztunnel and the controller, as they are built, on every node. [`Self::mesh_values`] name them.
    pub fn load_mesh_images(&self) -> Result<(), LabError> {
        self.load_built("ztunnel", &["ztunnel", "ztunnel-cni"])?;
        self.load_built("controller", &["controller"])
    }

    /// The same of the waypoint, for whoever asks for one.
    pub fn load_waypoint_image(&self) -> Result<(), LabError> {
        self.load_built("waypoint", &["waypoint"])
    }

    fn load_built(&self, name: &str, programs: &[&str]) -> Result<(), LabError> {
        let mut image = Image::new(&format!("{REGISTRY}/{name}:{TAG}"));
        for program in programs {
            image = image.file(format!("/{program}"), self.shared.tools.own.path(program, name)?);
        }
        for library in RESOLVER.into_iter().filter(|path| Path::new(path).exists()) {
            image = image.file(library, library);
        }
        let archive = self.dir().join(format!("{name}.tar"));
        image.with_libraries()?.entrypoint([format!("/{name}")]).write(&archive)?;
        self.load_image(&archive)
    }

    /// What the mesh's chart has to be told on this cluster, as one word for `helm --set`: which images, and, because the nodes
    /// share this machine's kernel, which cgroup is a node's.
    pub fn mesh_values(&self) -> String {
        let group = self.shared.run.cgroup.strip_prefix("/sys/fs/cgroup").unwrap_or(&self.shared.run.cgroup);
        let group = format!("{}/$(AIRGLOW_NODE)", group.display());
        format!(
            "image.registry={REGISTRY},image.tag={TAG},image.pullPolicy=Never,\
             ztunnel.cgroup={group},ztunnel.kubepods={group}/kubepods"
        )
    }
}
