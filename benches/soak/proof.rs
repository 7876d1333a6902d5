//! That the model finds what is wrong: it is shown a gateway that cannot know better.

use participant_gateway::proto::{CreateParticipantRequest, GetParticipantRequest};
use tonic::Status;

use crate::calls::Client;
use crate::model::{Conversation, End, Face, Told};
use crate::processes::Twilio;

/// A participant is changed past the gateway, of which no event tells, and then taken for changed through it: what is still
/// cached has to be found too old. After that it is removed likewise.
pub(crate) async fn the_model_can_fail(twilio: &Twilio, mut client: Client) -> Result<(), Status> {
    let conversation = Conversation::new(Face::V1, 99);
    twilio.post("populate", serde_json::json!({"conversation": conversation.id, "count": 0})).await;
    let key = conversation.begin_create();
    let request = CreateParticipantRequest {
        conversation: conversation.reference(),
        participant: Some(conversation.face.participant(&key, 0)),
        ..Default::default()
    };
    let created = client.create_participant(request).await?.into_inner().participant.unwrap_or_default();
    conversation.end(&key, End::Created { id: created.id.clone() }).map_err(Status::internal)?;

    let first = judge(&conversation, &mut client, &created.id, &key).await?;
    assert_eq!(first, Ok(()));
    let Told { version, .. } = conversation.begin_update().expect("somebody is there");
    twilio
        .update_v1(&conversation.id, &created.id, &conversation.face.update(&key, version).attributes)
        .await;
    conversation.end(&key, End::Updated { version }).map_err(Status::internal)?;
    let outdated = judge(&conversation, &mut client, &created.id, &key).await?;
    assert!(outdated.is_err_and(|what| what.contains("older than a known write")));
    conversation.learn_removal(&key);
    let removed = judge(&conversation, &mut client, &created.id, &key).await?;
    assert!(removed.is_err_and(|what| what.contains("who had gone")));
    Ok(())
}

async fn judge(
    conversation: &Conversation,
    client: &mut Client,
    id: &str,
    key: &str,
) -> Result<Result<(), String>, Status> {
    let before = conversation.before_of(key);
    let request = GetParticipantRequest {
        conversation: conversation.reference(),
        participant_id: id.to_owned(),
        read_options: None,
    };
    let answer = client.get_participant(request).await?.into_inner().participant.unwrap_or_default();
    let told = Told::read(conversation.face, &conversation.id, &answer).map_err(Status::internal)?;
    Ok(conversation.judge(&before, &told))
}
