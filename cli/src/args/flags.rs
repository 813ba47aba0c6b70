//! What flags say, as configuration values.

use super::{GatewayArgs, NatsArgs, ProcessorArgs, StorerArgs, UpArgs};
use crate::config::Flags;
use std::path::PathBuf;

fn shown(path: &Option<PathBuf>) -> Option<String> {
    path.as_ref().map(|path| path.display().to_string())
}

impl UpArgs {
    /// The flags as configuration values.
    pub(crate) fn flags(&self, flags: Flags) -> Flags {
        flags
            .set("up.data", "--data", shown(&self.data))
            .set("gateway.listen", "--listen", self.listen.as_ref())
            .set("gateway.tcp", "--tcp", self.tcp.as_ref())
            .set("up.demo", "--demo", self.demo.as_ref())
            .set("up.ready_file", "--ready-file", shown(&self.ready_file))
            .set("up.profile", "--profile", self.profile.as_ref())
            .set("nats.lanes", "--lanes", self.lanes.as_ref())
            .set("up.nats_server", "--nats-server", shown(&self.nats_server))
            .set("gateway.tokens_file", "--tokens", shown(&self.tokens))
            .set("admin.listen", "--admin", self.admin.as_ref())
    }
}

impl NatsArgs {
    fn flags(&self, flags: Flags) -> Flags {
        flags
            .set("nats.url", "--nats", self.url.as_ref())
            .set("nats.credentials_file", "--nats-creds", shown(&self.credentials))
            .set("nats.lanes", "--lanes", self.lanes.as_ref())
            .set("admin.listen", "--admin", self.admin.as_ref())
    }
}

impl GatewayArgs {
    /// The flags as configuration values.
    pub(crate) fn flags(&self, flags: Flags) -> Flags {
        self.nats
            .flags(flags)
            .set("gateway.listen", "--listen", self.listen.as_ref())
            .set("gateway.tcp", "--tcp", self.tcp.as_ref())
            .set("gateway.certificate_file", "--cert", shown(&self.cert))
            .set("gateway.key_file", "--key", shown(&self.key))
            .set("gateway.tokens_file", "--tokens", shown(&self.tokens))
            .set("gateway.stored_copies", "--stored-copies", self.stored_copies.as_ref())
    }
}

impl ProcessorArgs {
    /// The flags as configuration values.
    pub(crate) fn flags(&self, flags: Flags) -> Flags {
        self.nats.flags(flags).set("processor.partitions", "--partitions", self.partitions.as_ref())
    }
}

impl StorerArgs {
    /// The flags as configuration values.
    pub(crate) fn flags(&self, flags: Flags) -> Flags {
        let flags = self.nats.flags(flags).set("storer.directory", "--data", shown(&self.data));
        let flags = flags.set("storer.copy_every", "--every", self.every.clone());
        flags.set("storer.copies_kept", "--keep", self.keep.map(|n| n.to_string()))
    }
}
