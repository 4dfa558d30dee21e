//! Which version a handler runs where the one that is deployed cannot: the one before it when it fails early, the one that ran last
//! when a host starts. In: what ran. Out: a handler that runs, and everybody told. Never: a version that reads what the last one passed
//! by, or that makes other documents.

use std::sync::Arc;

use super::probation::Probations;
use super::{Keeper, REPORT_EVERY, Running, Wanted};
use crate::alerts;
use crate::generation::ledger;
use crate::progress::{Refused, State};
use crate::registry::{Deployment, Desired, Outcome, Verdict};
use crate::version::{self, Version};

impl Keeper {
    /// Runs the version before again, or else one before that, and says so to everybody. None: there is none to go back to.
    pub(super) async fn go_back(&self, over: &mut Running, reason: &str) -> Option<Running> {
        let failed = Arc::clone(&over.version);
        let mut probations = std::mem::take(&mut over.probations);
        let delivered = self.progress.delivered();
        let mut given_up = probations.give_up().filter(|own| own.lasts(delivered))?;
        let own = (given_up.revision, given_up.first);
        let note = format!("went back from {}: {reason}", failed.digest.short());
        let (version, before) = loop {
            let before = given_up.before;
            // One that reads more would never be given what this one passed.
            let passed = version::widened(failed.filters(), before.deployment.filters());
            let prepared = match passed {
                Some(passed) => Err(passed),
                None => self.prepared(&before).await.map_err(|defect| format!("{defect:#}")),
            };
            let defect = match prepared {
                Ok(version) => break (version, before),
                Err(defect) => defect,
            };
            tracing::warn!(
                handler = self.name,
                module = before.deployment.digest.short(),
                defect,
                "nothing to go back to"
            );
            let Some(next) = probations.give_up() else {
                self.progress.set(State::Failing, format!("{reason}; and the one before cannot be run: {defect}"));
                return None;
            };
            given_up = next;
        };
        self.give_up(own, &failed, reason).await;
        let deployment = Deployment { note, ..before.deployment };
        tracing::warn!(handler = self.name, from = failed.digest.short(), to = deployment.digest.short(), "going back");
        let told =
            serde_json::json!({ "from": failed.digest, "to": deployment.digest, "host": self.host, "reason": reason });
        let replicas = deployment.settings.replicas;
        if let Err(error) = alerts::tell(&self.jetstream, &self.name, "went-back", replicas, &told).await {
            tracing::warn!(handler = self.name, %error, "nobody is told that the handler went back");
        }
        // Later deployments are a person's word, and count.
        let revision = match self.registry.replace(&self.name, own.0, &deployment).await {
            Ok(new) => new.unwrap_or(before.revision),
            Err(error) => {
                tracing::warn!(handler = self.name, %error, "the deployment still names the module that failed");
                before.revision
            }
        };
        version.runs_as(revision);
        probations.runs_again_as(revision);
        Some(self.start(&Wanted { revision, deployment }, Arc::new(version), probations))
    }

    /// Says that a version of these deployments has failed, and is nothing to go back to.
    async fn give_up(&self, (revision, first): (u64, Option<u64>), failed: &Version, reason: &str) {
        let digest = failed.digest.to_string();
        self.progress.refused(Some(Refused { revision, digest, reason: reason.to_owned() }));
        for revision in [Some(revision), first].into_iter().flatten() {
            if let Err(error) = self.registry.gave_up(&self.name, revision).await {
                tracing::warn!(handler = self.name, %error, "a rollback may choose the module that failed");
            }
        }
        let refused = Verdict {
            host: self.host.clone(),
            revision,
            digest: failed.digest,
            outcome: Outcome::Refused,
            reason: reason.to_owned(),
            pause_microseconds: None,
        };
        self.tell(&refused).await;
    }

    /// At a host's start, with a deployment that cannot be run: the one that ran last, or else the newest before it that can.
    pub(super) async fn fall_back(&self, wanted: &Wanted, reason: &str) -> Option<Running> {
        if self.lost_ledger().await.is_some() {
            return None;
        }
        let ran = self.progress.report(0).revision;
        let earlier = self.registry.earlier(&self.name, wanted.revision, ran).await.ok()?;
        // What was deployed before a promotion is another generation's.
        let promoted = self.promoted().await.ok()?;
        let earlier = earlier.into_iter().map(|(revision, deployment)| Wanted { revision, deployment });
        for past in earlier.filter(|past| past.revision >= promoted && past.deployment.desired == Desired::Running) {
            let Ok(version) = self.prepared(&past).await else { continue };
            if self.defect_here(&version).await.is_none() {
                tracing::warn!(handler = self.name, reason, runs = version.digest.short(), "running the one before");
                return Some(self.start(&past, Arc::new(version), Probations::default()));
            }
        }
        None
    }

    /// Why a version cannot go on where the last one left off: what it makes, or what it reads.
    pub(super) async fn defect_here(&self, version: &Version) -> Option<String> {
        let found = self.documents().await;
        if let Some(other) = found.first().filter(|_| !found.contains(&version.makes())) {
            return Some(version::others_documents(*other, version.makes()));
        }
        let before = self.ran_last().await?;
        version::widened(before.filters(), version.filters())
    }

    /// The deployment that ran last, here or on another host, where it is known and of the live generation.
    async fn ran_last(&self) -> Option<Deployment> {
        let ran = self.progress.report(0).revision;
        loop {
            match self.known(ran).await {
                Ok(known) => return known,
                Err(error) => tracing::warn!(handler = self.name, %error, "trying again"),
            }
            tokio::time::sleep(REPORT_EVERY).await;
        }
    }

    async fn known(&self, ran: u64) -> anyhow::Result<Option<Deployment>> {
        if ran == 0 || ran < self.promoted().await? {
            return Ok(None);
        }
        let known = self.registry.earlier(&self.name, u64::MAX, ran).await?;
        Ok(known.into_iter().find(|(revision, _)| *revision == ran).map(|(_, deployment)| deployment))
    }

    /// Revision of the deployment that the last promotion made; 0 where there was none.
    async fn promoted(&self) -> anyhow::Result<u64> {
        let ended = ledger::look(&self.jetstream, &self.name).await?.ended;
        let made_at = self.registry.made_at().await?;
        Ok(ended.filter(|ended| ended.counts_in(made_at)).map_or(0, |ended| ended.revision))
    }
}
