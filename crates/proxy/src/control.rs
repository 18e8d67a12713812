//! The connection to the controller: its channel, what proves who asks, and what is asked for by it.
//!
//! Owns no sink: what discovery delivers is the program's to apply.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon::config::Parser;
use identity::control::{self, BadTarget, Roots, Target};
use identity::{CaClient, Certificates, CertificatesConfig, Driver, SystemClock, TokenFile, TokenSource};
use model::Str;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;

/// How the controller is reached.
#[derive(Clone, Debug)]
pub struct Controller {
    /// `https://host:port`.
    pub address: String,
    /// The PEM file of the roots that its certificate must chain to.
    pub root: PathBuf,
    /// The file with this process's token.
    pub token: PathBuf,
    /// The cluster's name.
    pub cluster: Str,
    /// Other trust domains that are let in.
    pub trust_domain_aliases: Vec<Str>,
}

impl Controller {
    /// Reads the settings that say so.
    pub fn load(p: &Parser<'_>) -> Option<Self> {
        let address = p.required::<String>("AIRGLOW_CONTROLLER");
        if let Some(address) = &address
            && !address.starts_with("https://")
        {
            p.conflict(
                "AIRGLOW_CONTROLLER",
                "must begin with https://: there is no plaintext control channel",
            );
        }
        let root = p.required("AIRGLOW_ROOT_CERT");
        let token = p.required("AIRGLOW_TOKEN");
        let cluster = p.or("AIRGLOW_CLUSTER_ID", "Kubernetes".to_owned());
        let aliases = p.or("AIRGLOW_TRUST_DOMAIN_ALIASES", String::new());
        let aliases = aliases?.split(',').filter(|alias| !alias.is_empty()).map(Into::into).collect();
        Some(Self {
            address: address?,
            root: root?,
            token: token?,
            cluster: cluster?.into(),
            trust_domain_aliases: aliases,
        })
    }
}

/// Why the controller can't be spoken to with these settings.
#[derive(Debug, thiserror::Error)]
pub enum BadController {
    /// No address.
    #[error("AIRGLOW_CONTROLLER={0:?} is no address: {1}")]
    Address(String, http::uri::InvalidUri),
    /// The cluster's name has characters that can't be sent.
    #[error("AIRGLOW_CLUSTER_ID={0:?} can't be sent in a header")]
    Cluster(Str),
    /// An address that can't be dialled.
    #[error("AIRGLOW_CONTROLLER: {0}")]
    Target(#[from] BadTarget),
}

/// A channel to the controller, and this process's token.
#[derive(Clone, Debug)]
pub struct Control {
    /// Connects when it is first used.
    pub channel: Channel,
    /// Read anew for each call.
    pub token: Arc<dyn TokenSource>,
}

impl Control {
    /// Connects nowhere yet.
    ///
    /// # Errors
    /// When the settings can't be right.
    pub fn new(settings: &Controller) -> Result<Self, BadController> {
        let address = settings
            .address
            .parse()
            .map_err(|error| BadController::Address(settings.address.clone(), error))?;
        let target = Target { address, roots: Roots::File(settings.root.clone()), server_name: None };
        let channel = control::channel(target, Arc::new(SystemClock))?;
        Ok(Self { channel, token: Arc::new(TokenFile(settings.token.clone())) })
    }

    /// The certificates that the controller signs, and the driver that keeps them fresh.
    ///
    /// # Errors
    /// When the settings can't be right.
    pub fn certificates(&self, settings: &Controller) -> Result<(Certificates, Driver), BadController> {
        let ca = CaClient::new(self.channel.clone(), Arc::clone(&self.token), &settings.cluster)
            .map_err(|_| BadController::Cluster(settings.cluster.clone()))?;
        let config = CertificatesConfig {
            // None: how long a certificate lives is the CA's to say.
            validity: Duration::ZERO,
            trust_domain_aliases: settings.trust_domain_aliases.clone().into(),
            ..CertificatesConfig::default()
        };
        Ok(Certificates::new(Arc::new(ca), config, Arc::new(SystemClock)))
    }
}

/// Brings the channel and a token that is read anew for each session.
impl xds::Connector for Control {
    async fn connect(&mut self) -> Result<xds::Connection, Box<dyn std::error::Error + Send + Sync>> {
        let mut bearer = MetadataValue::try_from(format!("Bearer {}", self.token.token()?))?;
        bearer.set_sensitive(true);
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", bearer);
        Ok(xds::Connection { channel: self.channel.clone(), metadata })
    }
}
