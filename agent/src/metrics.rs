//! What the agent counts, in one place.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Describes every metric of this crate.
pub(crate) fn describe() {
    describe_gauge!("countersign_agent_svid_expiry_timestamp_seconds", Unit::Seconds, "When the SVID in hand expires");
    describe_counter!("countersign_agent_renewals_total", "Attempts to get an SVID, by result");
    describe_gauge!("countersign_agent_authority_connected", "1 while the authority is being followed");
    describe_counter!("countersign_agent_snapshots_total", "Snapshots of the authority, by result");
    describe_gauge!("countersign_agent_policy_generation", "Snapshot in which the policy in force first came");
    describe_counter!("countersign_agent_workload_api_requests_total", "Calls of the Workload API's socket");
    describe_gauge!("countersign_agent_workload_api_streams", "Open streams of the Workload API's socket");
    describe_gauge!(
        "countersign_secrets_age_seconds",
        Unit::Seconds,
        "Time since the values of a secret were last known to be the backend's"
    );
    describe_counter!("countersign_secrets_fetch_total", "Polls of what a secret is made from, by result");
    describe_counter!("countersign_secrets_refused_total", "Values that were refused: not valid, or immutable");
    describe_counter!("countersign_secrets_publish_total", "Attempts to publish a generation, by result");
    describe_gauge!("countersign_secrets_generation", "The generation in force");
    describe_counter!("countersign_secrets_notify_total", "Attempts to tell the app, by kind and result");
    describe_gauge!("countersign_secrets_unacknowledged", "Apps that could not be told of a change in ten attempts");
    describe_counter!("countersign_secrets_reload_failures_total", "Changed secrets files that were not taken up");
    describe_histogram!(
        "countersign_secrets_published_seconds",
        Unit::Seconds,
        "From noticing a new value to publishing it"
    );
    describe_histogram!(
        "countersign_secrets_acknowledged_seconds",
        Unit::Seconds,
        "From noticing a new value to the app's acknowledgement"
    );
}
