//! What is shown of an upstream to who looks after the process.

use std::time::Instant;

use super::Upstream;

impl Upstream {
    /// What is known of each endpoint, for who looks after the process.
    pub(crate) fn show(&self) -> serde_json::Value {
        let now = Instant::now();
        let members = self.members.borrow();
        let endpoints = members.all.iter().map(|member| {
            let endpoint = &member.endpoint;
            let standing = match endpoint.health.reason() {
                Some(reason) => format!("out: {}", reason.as_str()),
                None if endpoint.is_held(now) => "held".to_owned(),
                None => "in".to_owned(),
            };
            serde_json::json!({
                "address": endpoint.name(),
                "standing": standing,
                "under_way": endpoint.in_flight(),
                "latency": endpoint.latency(now),
                "weight": member.weight,
                "priority": member.priority,
            })
        });
        serde_json::json!({
            "listener": &*self.listener.name,
            "to": self.address,
            "problem": members.problem,
            "endpoints": endpoints.collect::<serde_json::Value>(),
        })
    }
}
