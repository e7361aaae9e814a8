use super::*;

const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const UID: &str = "1b2c3d4e-0000-4000-8000-0123456789ab";

#[test]
fn container_ids_are_found_in_every_runtimes_paths() {
    let under = UID.replace('-', "_");
    let slice = format!("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice");
    for (path, runtime, pod) in [
        (format!("/system.slice/docker-{ID}.scope"), Some("docker"), None),
        (format!("/docker/{ID}"), Some("docker"), None),
        (format!("/docker/{ID}/init.scope"), Some("docker"), None),
        (format!("{slice}/cri-containerd-{ID}.scope"), Some("containerd"), Some(UID)),
        (format!("{slice}/crio-{ID}.scope/container"), Some("cri-o"), Some(UID)),
        (format!("/kubepods/besteffort/pod{UID}/{ID}"), None, Some(UID)),
        (format!("/kubepods/pod{UID}/crio-{ID}"), Some("cri-o"), Some(UID)),
        (
            format!("/system.slice/containerd.service/kubepods-burstable-pod{under}.slice:cri-containerd:{ID}"),
            Some("containerd"),
            Some(UID),
        ),
        (format!("/machine.slice/libpod-{ID}.scope/container"), Some("podman"), None),
        (format!("/libpod_parent/libpod-{ID}"), Some("podman"), None),
        (format!("/user.slice/nerdctl-{ID}.scope"), Some("nerdctl"), None),
        (format!("/default/{ID}"), None, None),
        // kind: the node is a container that runs others.
        (format!("/docker/{}/kubelet.slice/cri-containerd-{ID}.scope", ID.replace('0', "f")), Some("containerd"), None),
    ] {
        let workload = Workload::of_cgroup(&path);
        let container = Container { runtime: runtime.map(str::to_owned), id: ID.to_owned() };
        assert_eq!(workload, Workload { container: Some(container), pod_uid: pod.map(str::to_owned) }, "{path}");
    }
}

#[test]
fn what_was_started_by_hand_has_the_name_it_was_given() {
    let of =
        |path: &str| Workload::of_cgroup(path).container.map(|container| (container.runtime.unwrap(), container.id));
    assert_eq!(of("/system.slice/runc-my_box-1.scope"), Some(("runc".into(), "my_box-1".into())));
    assert_eq!(of("/user.slice/crun-box.scope/x"), Some(("crun".into(), "box".into())));
    // Inside another container anybody could have named it.
    assert_eq!(of(&format!("/docker/{ID}/runc-box.scope")), Some(("docker".into(), ID.into())));
    for path in
        ["/system.slice/runc-.scope", "/system.slice/runc-a:b.scope", "/runc-box", "/system.slice/other-box.scope"]
    {
        assert_eq!(of(path), None, "{path}");
    }
}

#[test]
fn what_is_no_container_is_none() {
    for path in [
        "/".to_owned(),
        "/demo.slice".to_owned(),
        "/system.slice/docker.service".to_owned(),
        format!("/machine.slice/libpod-conmon-{ID}.scope"),
        format!("/system.slice/crio-conmon-{ID}.scope"),
        format!("/system.slice/docker-{}.scope", &ID[1..]),
        format!("/system.slice/docker-{}.scope", ID.to_uppercase()),
        "/podinfo/pod-".to_owned(),
    ] {
        assert_eq!(Workload::of_cgroup(&path), Workload::default(), "{path}");
    }
}
