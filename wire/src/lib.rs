//! The gRPC interfaces, as `proto/` defines them, and nothing else: no logic, no defaults.
//!
//! [`workload`] is the SPIFFE Workload API; [`policy`] stands beside it on the same unix socket; [`authority`] is
//! what agents say to the authority.

/// The SPIFFE Workload API (SPIFFE Workload API standard, appendix A).
pub mod workload {
    tonic::include_proto!("_");

    /// Metadata key that every Workload API call must carry with the value `true` (SPIFFE Workload Endpoint §3.1).
    pub const REQUIRED_METADATA: &str = "workload.spiffe.io";
}

/// The policy feed: what `proxy` asks of the agent beside the Workload API.
pub mod policy {
    tonic::include_proto!("countersign.policy.v1");
}

/// What an agent asks of the authority.
pub mod authority {
    tonic::include_proto!("countersign.authority.v1");
}
