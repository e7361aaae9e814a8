use super::*;

fn event(count: u32) -> Event {
    enriched(DropEvent { count, ..refused() })
}

fn count(event: &Event) -> u32 {
    event.refusal().unwrap().count
}

#[tokio::test]
async fn a_slow_subscriber_loses_events_and_is_told_how_many() {
    let hub = Hub::new(4);
    let (mut slow, mut fast) = (hub.subscribe(), hub.subscribe());
    for number in 1..=10 {
        hub.publish(event(number));
        assert!(matches!(fast.next().await, Some(Item::Event(event)) if count(&event) == number));
    }
    assert_eq!(slow.next().await, Some(Item::Lost(6)));
    for number in 7..=10 {
        assert!(matches!(slow.next().await, Some(Item::Event(event)) if count(&event) == number));
    }
    hub.close();
    assert_eq!(slow.next().await, None);
    hub.publish(event(11));
    assert_eq!(hub.subscribe().next().await, None);
}

#[tokio::test]
async fn the_last_events_are_kept_and_join_the_live_ones_without_a_gap() {
    let hub = Hub::new(3);
    (1..=5).for_each(|number| hub.publish(event(number)));
    let (recent, mut live) = hub.subscribe_with_recent();
    hub.clone().publish(event(6));
    assert_eq!(recent.iter().map(|event| count(event)).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(matches!(live.next().await, Some(Item::Event(event)) if count(&event) == 6));
    assert_eq!(hub.recent().len(), 3);
}
