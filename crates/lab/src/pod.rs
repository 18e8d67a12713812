//! A pod: a network namespace with one interface, a cgroup, a host name and its own /etc/hosts and /etc/resolv.conf.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::enter::Entry;
use crate::error::{LabError, cannot};
use crate::inner::{Inner, first_v4, set};
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::process::{Output, Process, Program};
use crate::spec::PodSpec;
use crate::state::PodRecord;
use crate::topology::{self, DNS_VIP};
use crate::wiring::{self, Role};
use crate::{RUN_WITHIN, RunError, cgroup, node_api, tool};

/// A pod of the lab. Copies of the handle mean the same pod; dropping them does not remove it.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
    node: usize,
    namespace: String,
    name: String,
    service_account: String,
    uid: String,
    ips: Vec<IpAddr>,
    netns: Netns,
    entry: Entry,
    host_number: Option<u8>,
}

impl Pod {
    /// Its Kubernetes UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Its addresses, IPv4 first.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Its IPv4 address.
    pub fn ip(&self) -> IpAddr {
        first_v4(&self.ips)
    }

    /// Its IPv6 address.
    ///
    /// # Panics
    /// In a lab without IPv6.
    pub fn ip6(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv6()).expect("the lab has IPv6")
    }

    /// The node it runs on.
    pub fn node(&self) -> Node {
        Node::new(Arc::clone(&self.inner), self.node)
    }

    /// Its network namespace (its node's for a pod with hostNetwork).
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Starts a program in it.
    pub fn spawn(&self, program: impl Into<Program>) -> Result<Process, LabError> {
        self.inner.spawn(&self.entry, program.into())
    }

    /// Runs a program in it to its end, for at most half a minute.
    pub fn run(&self, program: impl Into<Program>) -> Result<Output, RunError> {
        self.run_within(program, RUN_WITHIN)
    }

    /// Runs a program in it to its end; kills it when it is late.
    pub fn run_within(&self, program: impl Into<Program>, within: Duration) -> Result<Output, RunError> {
        let process = self.spawn(program)?;
        Ok(process.wait(within).inspect_err(|_| drop(process.kill()))?)
    }

    /// Sets or removes a label.
    pub fn label(&self, key: &str, value: Option<&str>) -> Result<(), LabError> {
        self.edit(|record| set(&mut record.spec.labels, key, value))
    }

    /// Sets or removes an annotation.
    pub fn annotate(&self, key: &str, value: Option<&str>) -> Result<(), LabError> {
        self.edit(|record| set(&mut record.spec.annotations, key, value))
    }

    /// Makes it ready or not; services lead to ready pods only.
    pub fn set_ready(&self, ready: bool) -> Result<(), LabError> {
        self.edit(|record| record.ready = ready)
    }

    /// Says that its deletion was asked for. Its programs go on; [`Self::remove`] ends it.
    pub fn start_deletion(&self) -> Result<(), LabError> {
        let now = OffsetDateTime::from(SystemTime::now());
        let now = now.replace_nanosecond(0).expect("zero is a nanosecond").format(&Rfc3339);
        self.edit(|record| record.deleted_at = Some(now.expect("this century has a form in RFC 3339")))
    }

    /// Tells the node's ztunnel of it (again). Adding a pod and starting a ztunnel do this by themselves.
    pub fn announce(&self) -> Result<(), LabError> {
        let cluster = self.inner.cluster();
        let record = cluster.state.pods.get(&self.key()).filter(|record| record.uid == self.uid).cloned();
        drop(cluster);
        match record {
            Some(record) => node_api::announce(&self.inner, &record),
            None => Err(LabError::Refused(format!("pod {}/{} was removed", self.namespace, self.name))),
        }
    }

    /// Removes it: from the manifests, its programs, its announcement, its namespace.
    pub fn remove(&self) -> Result<(), LabError> {
        let found = self.inner.change(|cluster| {
            let current = cluster.state.pods.get(&self.key()).is_some_and(|record| record.uid == self.uid);
            Ok(current.then(|| cluster.state.pods.remove(&self.key())))
        })?;
        if found.is_none() {
            return Ok(());
        }
        let group = &self.entry.cgroup;
        cgroup::remove(group).map_err(cannot(format!("remove the cgroup {}", group.display())))?;
        if let Some(host_number) = self.host_number {
            node_api::retract(&self.inner, self.node, &self.uid)?;
            wiring::unplug(self.node().netns(), &device(host_number))?;
            netns::remove(self.netns.path()).map_err(cannot("remove the pod's network namespace"))?;
            self.inner.cluster().pools[self.node].free(host_number);
        }
        let dir = self.inner.run.dir.join("pods").join(&self.uid);
        fs::remove_dir_all(&dir).map_err(cannot(format!("remove {}", dir.display())))
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    fn edit(&self, edit: impl FnOnce(&mut PodRecord)) -> Result<(), LabError> {
        self.inner.change(|cluster| match cluster.state.pods.get_mut(&self.key()) {
            Some(record) if record.uid == self.uid => {
                edit(record);
                Ok(())
            }
            _ => Err(LabError::Refused(format!("pod {}/{} was removed", self.namespace, self.name))),
        })
    }

    fn key(&self) -> (String, String) {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Makes a pod on the node of that index.
pub(crate) fn add(inner: &Arc<Inner>, node: usize, spec: PodSpec) -> Result<Pod, LabError> {
    let uid = uuid();
    let key = (spec.namespace.clone(), spec.name.clone());
    let host_number = {
        let mut cluster = inner.cluster();
        if cluster.state.pods.contains_key(&key) {
            return Err(LabError::Refused(format!("pod {}/{} exists already", key.0, key.1)));
        }
        let pool = &mut cluster.pools[node];
        match (spec.host_network, spec.host_number) {
            (true, _) => None,
            (false, None) => Some(pool.take()?),
            (false, Some(number)) => Some(pool.take_exactly(number)?),
        }
    };
    let pod = connect(inner, node, &spec, uid, host_number)?;
    let record =
        PodRecord { uid: pod.uid.clone(), node, ips: pod.ips.clone(), ready: true, deleted_at: None, spec };
    inner.change(|cluster| {
        Inner::ensure_namespace(cluster, &key.0);
        match cluster.state.pods.insert(key, record.clone()) {
            None => Ok(()),
            Some(_) => Err(LabError::Refused("two threads added pods of one name".into())),
        }
    })?;
    node_api::announce(inner, &record)?;
    Ok(pod)
}

fn connect(
    inner: &Arc<Inner>,
    node: usize,
    spec: &PodSpec,
    uid: String,
    host_number: Option<u8>,
) -> Result<Pod, LabError> {
    let _standing = inner.standing()?;
    let site = &inner.nodes[node];
    let ipv6 = inner.config.ipv6;
    let (netns, ips) = match host_number {
        None => (site.netns.clone(), topology::node(site.number).ips(ipv6)),
        Some(number) => {
            let netns = Netns::create(&inner.run.netns(&format!("pod-{uid}")))?;
            let ips = topology::pod(site.number, number).ips(ipv6);
            tool::sysctl(&netns, &wiring::sysctls(Role::Pod, ipv6, &inner.config.tuning))?;
            wiring::pod(&netns, &site.netns, &device(number), &ips, site.number)?;
            (netns, ips)
        }
    };
    let mut entry = site.entry(&format!("kubepods/pod{uid}"));
    entry.netns = Some(netns.path().to_owned());
    entry.hostname = Some(spec.name.clone());
    entry.files = etc_files(inner, &uid, spec, &ips)?;
    cgroup::create(&entry.cgroup)?;
    Ok(Pod {
        inner: Arc::clone(inner),
        node,
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        service_account: spec.service_account.clone(),
        uid,
        ips,
        netns,
        entry,
        host_number,
    })
}

/// The node's end of a pod's link.
fn device(host_number: u8) -> String {
    format!("veth{host_number}")
}

/// What kubelet writes for a pod with the DNS policy ClusterFirst.
fn etc_files(
    inner: &Inner,
    uid: &str,
    spec: &PodSpec,
    ips: &[IpAddr],
) -> Result<Vec<(std::path::PathBuf, std::path::PathBuf)>, LabError> {
    let dir = inner.run.dir.join("pods").join(uid);
    fs::create_dir(&dir).map_err(cannot(format!("create {}", dir.display())))?;
    let search = format!("{}.svc.cluster.local svc.cluster.local cluster.local", spec.namespace);
    let resolv = format!("search {search}\nnameserver {}\noptions ndots:5\n", DNS_VIP.v4);
    let mut hosts = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost\n");
    for ip in ips {
        hosts += &format!("{ip} {}\n", spec.name);
    }
    let mut files = Vec::new();
    for (name, text) in [("resolv.conf", resolv), ("hosts", hosts)] {
        let path = dir.join(name);
        fs::write(&path, text).map_err(cannot(format!("write {}", path.display())))?;
        files.push((path, std::path::Path::new("/etc").join(name)));
    }
    Ok(files)
}

/// A random UUID, RFC 9562 version 4.
fn uuid() -> String {
    let bits = (fastrand::u128(..) & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_have_the_form_of_random_uuids() {
        let uid = uuid();
        let parts: Vec<_> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert!("89ab".contains(&uid[19..20]), "{uid}");
    }
}
