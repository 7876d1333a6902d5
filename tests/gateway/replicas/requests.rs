//! One request id at several replicas: one participant, and one answer.

use participant_gateway::feed::{IdentifiedRequest, RequestClaim, RequestTicket};
use participant_gateway::ids::RequestId;
use serde_json::json;
use tokio::runtime::Runtime;
use tonic_types::StatusExt as _;

use super::*;
use crate::outcomes::{ID, posts, there, with_id};

/// What a replica that was killed has begun is given up soon.
const QUICK: &[(&str, &str)] =
    &[("GATEWAY_UPSTREAM_TOTAL_TIMEOUT", "2s"), ("GATEWAY_UPSTREAM_ATTEMPT_TIMEOUT", "2s")];

async fn two_replicas(redis: &Redis) -> (Gateway, Gateway, DropGuard) {
    let (fake, end) = sandbox(Default::default()).await;
    let one = current_replica(fake, redis.address(), QUICK).await;
    (one, current_replica(fake, redis.address(), QUICK).await, end)
}

fn request(account: &str, fingerprint: u8, at_work: Duration) -> IdentifiedRequest {
    IdentifiedRequest {
        account: AccountId::parse(account).unwrap(),
        id: RequestId::parse(ID).unwrap(),
        fingerprint: [fingerprint; 32],
        at_work,
        kept: Duration::from_secs(600),
    }
}

/// A replica's own words for what it found.
async fn claim(peer: &Peer, request: IdentifiedRequest) -> Result<RequestTicket, String> {
    match peer.feed.claim(request).await {
        RequestClaim::First(ticket) => Ok(ticket),
        RequestClaim::UnderWay => Err("under way".into()),
        RequestClaim::Settled(outcome) => Err(format!("settled with {outcome:?}")),
        RequestClaim::Lost => Err("lost".into()),
        RequestClaim::OtherRequest => Err("other".into()),
    }
}

on_both_versions! {
    #[ignore = "needs redis-server: run .ci/redis"]
    async fn at_the_same_time_and_later_it_creates_once(face) {
        let redis = Redis::start();
        let (mut one, mut other, _end) = two_replicas(&redis).await;
        one.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true })).await;
        let calls: Vec<_> = (0..10)
            .map(|call| {
                let mut client = if call % 2 == 0 { one.client.clone() } else { other.client.clone() };
                tokio::spawn(async move { client.create_participant(with_id(face, 1)).await })
            })
            .collect();
        one.sandbox.held(1).await;
        assert!(redis.cli(&["KEYS", "*:request:*"]).contains(ID), "it is claimed before it is sent");
        one.sandbox.clear_faults().await;
        let mut created = Vec::new();
        for call in calls {
            created.push(call.await.unwrap().unwrap().into_inner().participant.unwrap());
        }
        for gateway in [&mut one, &mut other] {
            created.push(gateway.create(with_id(face, 1)).await.unwrap());
        }
        assert_eq!(created.len(), 12);
        created.dedup();
        assert_eq!((created.len(), posts(&one).await, there(&mut other, face, 1).await), (1, 1, 1));

        let error = other.create(with_id(face, 2)).await.unwrap_err();
        assert_eq!(refused_fields(&error), ["request_id"]);
        assert_eq!(posts(&one).await, 1);
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_refusal_is_an_outcome_everywhere(face) {
        let redis = Redis::start();
        let (mut one, mut other, _end) = two_replicas(&redis).await;
        let there = one.get(face.get()).await.unwrap().0;
        let taken = Participant { addresses: there.addresses, ..Default::default() };
        let request = CreateParticipantRequest { request_id: ID.into(), ..face.create(taken) };
        let first = one.create(request.clone()).await.unwrap_err();
        let again = other.create(request).await.unwrap_err();
        assert_eq!(told(&first), (Code::AlreadyExists, "PARTICIPANT_EXISTS".into()));
        assert_eq!((told(&again), again.message()), (told(&first), first.message()));
        let metadata = |status: &tonic::Status| status.get_details_error_info().unwrap().metadata;
        assert_eq!(metadata(&again), metadata(&first));
        let other = |status: &tonic::Status| status.get_details_resource_info().unwrap().resource_name;
        assert_eq!(other(&again), other(&first));
        assert_eq!(posts(&one).await, 1);
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn an_unknown_outcome_is_one_everywhere_and_what_was_not_processed_is_none(face) {
        let redis = Redis::start();
        let (mut one, mut other, _end) = two_replicas(&redis).await;
        one.sandbox.fault(json!({ "match": { "method": "POST" }, "status": 401, "times": 2 })).await;
        let error = one.create(with_id(face, 1)).await.unwrap_err();
        assert_eq!(told(&error).1, "UPSTREAM_CREDENTIALS_REJECTED");
        one.sandbox.clear_faults().await;
        one.sandbox.forget_requests().await;
        one.sandbox.fault(json!({ "match": { "method": "POST" }, "cut": "before", "times": 1 })).await;
        for gateway in [&mut other, &mut one] {
            let error = gateway.create(with_id(face, 1)).await.unwrap_err();
            assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
            assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        }
        assert_eq!(posts(&one).await, 1);
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn what_a_killed_replica_has_sent_is_not_sent_again(face) {
        let (redis, (fake, _end)) = (Redis::start(), sandbox(Default::default()).await);
        let mut other = current_replica(fake, redis.address(), QUICK).await;
        let hold = json!({ "match": { "method": "POST" }, "after": true, "hold": true, "times": 1 });
        other.sandbox.fault(hold).await;
        // All that runs in it ends with it, wherever it stands.
        let (doomed, address) = (Runtime::new().unwrap(), redis.address());
        let handle = doomed.handle().clone();
        let begin = move || handle.block_on(current_replica(fake, address, QUICK));
        let gateway = tokio::task::spawn_blocking(begin).await.unwrap();
        let mut client = gateway.client.clone();
        doomed.spawn(async move { client.create_participant(with_id(face, 1)).await });
        other.sandbox.held(1).await;
        doomed.shutdown_background();
        let error = other.create(with_id(face, 1)).await.unwrap_err();
        assert_eq!(told(&error), (Code::Unknown, "WRITE_OUTCOME_UNKNOWN".into()));
        assert_eq!(error.metadata().get("grpc-retry-pushback-ms").unwrap(), "-1");
        assert_eq!((posts(&other).await, there(&mut other, face, 1).await), (1, 1));
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn a_create_goes_on_while_redis_is_away_and_is_told_on_its_return(face) {
        let mut redis = Redis::start();
        let (mut one, mut other, _end) = two_replicas(&redis).await;
        redis.kill();
        until(async || !is_current(&one).await).await;
        let alone = CreateParticipantRequest {
            request_id: "00000000-0000-4000-8000-000000000001".into(),
            ..with_id(face, 2)
        };
        let created = one.create(alone.clone()).await.unwrap();
        assert_eq!(one.create(alone).await.unwrap(), created, "the process knows its own");

        one.sandbox.fault(json!({ "match": { "method": "POST" }, "hold": true, "times": 1 })).await;
        let mut client = one.client.clone();
        let begun = tokio::spawn(async move { client.create_participant(with_id(face, 1)).await });
        one.sandbox.held(1).await;
        redis.start_again();
        until(async || is_current(&one).await && is_current(&other).await).await;
        one.sandbox.release().await;
        let created = begun.await.unwrap().unwrap().into_inner().participant.unwrap();
        assert_eq!(other.create(with_id(face, 1)).await.unwrap(), created);
        assert_eq!(posts(&one).await, 2);
    }

    #[ignore = "needs redis-server: run .ci/redis"]
    async fn an_id_is_in_redis_for_ten_minutes(face) {
        let redis = Redis::start();
        let (mut one, _other, _end) = two_replicas(&redis).await;
        one.create(with_id(face, 1)).await.unwrap();
        let key = redis.cli(&["KEYS", "*:request:*"]);
        assert_eq!(key, format!("{{participant-gateway}}:request:{}:{ID}", sandbox::ACCOUNT_SID));
        let left: i64 = redis.cli(&["TTL", &key]).parse().unwrap();
        assert!((590..=600).contains(&left), "{left}");
    }
}

with_redis! {
    async fn a_hung_redis_delays_a_create_and_does_not_fail_it() {
        let redis = Redis::start();
        let (mut one, _other, _end) = two_replicas(&redis).await;
        redis.signal("-STOP");
        one.create(with_id(Face::V1, 1)).await.unwrap();
        redis.signal("-CONT");
    }

    async fn a_claim_is_one_replica_s_until_it_is_settled_or_given_back() {
        let redis = Redis::start();
        let (one, other) = (Peer::of(redis.address()).await, Peer::of(redis.address()).await);
        let hour = Duration::from_secs(3600);
        let ours = || request(sandbox::ACCOUNT_SID, 1, hour);
        let ticket = claim(&one, ours()).await.ok().unwrap();
        assert_eq!(claim(&other, ours()).await.err().unwrap(), "under way");
        assert_eq!(claim(&other, request(sandbox::ACCOUNT_SID, 2, hour)).await.err().unwrap(), "other");
        let elsewhere = request("AC00000000000000000000000000000077", 2, hour);
        assert!(claim(&other, elsewhere).await.is_ok(), "an account's ids are its own");
        ticket.release().await;
        let ticket = claim(&other, ours()).await.ok().unwrap();
        ticket.settle(&[0, 255]).await;
        assert_eq!(claim(&one, ours()).await.err().unwrap(), "settled with [0, 255]");
    }

    async fn a_claim_that_nobody_settles_is_lost_and_its_owner_may_still_settle_it() {
        let redis = Redis::start();
        let (one, other) = (Peer::of(redis.address()).await, Peer::of(redis.address()).await);
        let ours = || request(sandbox::ACCOUNT_SID, 1, Duration::ZERO);
        let ticket = claim(&one, ours()).await.ok().unwrap();
        assert_eq!(claim(&other, ours()).await.err().unwrap(), "lost");
        ticket.settle(b"late").await;
        assert!(claim(&other, ours()).await.err().unwrap().starts_with("settled"));

        // Who comes back from an outage undoes nothing that another did meanwhile.
        redis.cli(&["FLUSHALL"]);
        let late = claim(&one, ours()).await.ok().unwrap();
        redis.cli(&["FLUSHALL"]);
        let ticket = claim(&other, ours()).await.ok().unwrap();
        late.settle(b"late").await;
        assert_eq!(claim(&one, ours()).await.err().unwrap(), "lost");
        ticket.settle(b"true").await;
        assert_eq!(claim(&one, ours()).await.err().unwrap(), format!("settled with {:?}", b"true"));
    }
}
