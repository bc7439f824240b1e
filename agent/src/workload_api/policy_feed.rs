//! The policy feed: the policy in force, and each that follows.

use countersign_wire::policy::policy_feed_server::PolicyFeed;
use countersign_wire::policy::{FollowRequest, Policy};
use futures::stream::{BoxStream, unfold};
use tonic::{Request, Response, Status};

use super::{Served, count, until_stopped};

#[tonic::async_trait]
impl PolicyFeed for Served {
    type FollowStream = BoxStream<'static, Result<Policy, Status>>;

    async fn follow(&self, _request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        count("PolicyFeed.Follow", "served");
        let mut policy = self.policy.clone();
        // What there is already counts as a change.
        policy.mark_changed();
        let answers = unfold(policy, |mut policy| async move {
            loop {
                // Its sender lives as long as the process serves.
                policy.changed().await.ok()?;
                let now = policy.borrow_and_update().clone();
                if let Some(text) = now.as_deref() {
                    let message = Policy { generation: text.generation, yaml: text.yaml.clone() };
                    return Some((Ok(message), policy));
                }
            }
        });
        Ok(Response::new(until_stopped(answers, self.lifecycle.clone())))
    }
}
