/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Programs onto hooks. Where the kernel has tcx, everything is a link: pinned, replaced in place, gone with its last
 * reference. clsact is for kernels without: a filter of a handle of our own, replaced by name.
 */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>

#include "internal.h"

#define TCX_INGRESS 46
#define TCX_EGRESS 47
#define LINK_TCX 11
#define BEFORE 8u // BPF_F_BEFORE, alone: at the head
// Ours among the filters of an interface.
#define FILTER_HANDLE 0x1d3
#define FILTER_PRIORITY 0x1d3

// ---- links ----

struct link_request {
	int program, target;
	uint32_t type;
};

static int64_t create_link(void *argument)
{
	const struct link_request *request = argument;
	// Before whoever is there: one that says OK ends the chain, and ours would never be asked.
	DECLARE_LIBBPF_OPTS(bpf_link_create_opts, options, .flags = BEFORE);
	bool tcx = request->type == TCX_INGRESS || request->type == TCX_EGRESS;
	int link = bpf_link_create(request->program, request->target, request->type, tcx ? &options : NULL);

	return link < 0 ? -errno : link;
}

int idm_datapath_link(int program, int target, uint32_t attach_type, int netns)
{
	struct link_request request = {program, target, attach_type};

	return (int)idm_in_netns(netns, create_link, &request);
}

int idm_datapath_link_update(int link, int program)
{
	return bpf_link_update(link, program, NULL) ? -errno : 0;
}

int idm_datapath_link_detach(int link)
{
	return bpf_link_detach(link) ? -errno : 0;
}

int idm_datapath_link_info(int link, struct idm_datapath_link *ret)
{
	struct bpf_link_info info = {0};
	uint32_t size = sizeof(info);

	if (bpf_obj_get_info_by_fd(link, &info, &size))
		return -errno;
	*ret = (struct idm_datapath_link){.id = info.id, .type = info.type, .program = info.prog_id};
	switch (info.type) {
	case BPF_LINK_TYPE_CGROUP:
		ret->cgroup = info.cgroup.cgroup_id;
		ret->attach_type = info.cgroup.attach_type;
		break;
	case BPF_LINK_TYPE_NETNS:
		ret->cgroup = info.netns.netns_ino;
		ret->attach_type = info.netns.attach_type;
		break;
	case LINK_TCX:
		// The header of libbpf 1.1 does not know tcx: its ifindex and attach type lie where netns has its own.
		ret->ifindex = info.netns.netns_ino;
		ret->attach_type = info.netns.attach_type;
		break;
	default:
		break;
	}
	return 0;
}

int idm_datapath_pin(int fd, const char *path)
{
	return bpf_obj_pin(fd, path) ? -errno : 0;
}

int idm_datapath_pinned(const char *path)
{
	int fd = bpf_obj_get(path);

	return fd < 0 ? -errno : fd;
}

// ---- clsact ----

struct filter_request {
	int program;
	uint32_t ifindex;
	int egress;
};

static struct bpf_tc_hook hook_of(const struct filter_request *request)
{
	return (struct bpf_tc_hook){
		.sz = sizeof(struct bpf_tc_hook),
		.ifindex = (int)request->ifindex,
		.attach_point = request->egress ? BPF_TC_EGRESS : BPF_TC_INGRESS,
	};
}

static int64_t attach_filter(void *argument)
{
	const struct filter_request *request = argument;
	struct bpf_tc_hook hook = hook_of(request);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, options, .prog_fd = request->program, .handle = FILTER_HANDLE,
			    .priority = FILTER_PRIORITY, .flags = BPF_TC_F_REPLACE);
	int r = bpf_tc_hook_create(&hook);

	if (r && r != -EEXIST)
		return r;
	return bpf_tc_attach(&hook, &options);
}

int idm_datapath_clsact(int program, uint32_t ifindex, int egress, int netns)
{
	struct filter_request request = {program, ifindex, egress};

	return (int)idm_in_netns(netns, attach_filter, &request);
}

static int64_t query_filter(void *argument)
{
	const struct filter_request *request = argument;
	struct bpf_tc_hook hook = hook_of(request);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, options, .handle = FILTER_HANDLE, .priority = FILTER_PRIORITY);
	int r = bpf_tc_query(&hook, &options);

	if (r == -ENOENT || r == -EINVAL)
		return 0;
	return r ? r : (int64_t)options.prog_id;
}

int64_t idm_datapath_clsact_query(uint32_t ifindex, int egress, int netns)
{
	struct filter_request request = {-1, ifindex, egress};

	return idm_in_netns(netns, query_filter, &request);
}

static int64_t detach_filter(void *argument)
{
	const struct filter_request *request = argument;
	struct bpf_tc_hook hook = hook_of(request);
	DECLARE_LIBBPF_OPTS(bpf_tc_opts, options, .handle = FILTER_HANDLE, .priority = FILTER_PRIORITY);
	int r = bpf_tc_detach(&hook, &options);

	return r == -ENOENT || r == -EINVAL ? 0 : r;
}

int idm_datapath_clsact_remove(uint32_t ifindex, int egress, int netns)
{
	struct filter_request request = {-1, ifindex, egress};

	return (int)idm_in_netns(netns, detach_filter, &request);
}

static int64_t destroy_qdisc(void *argument)
{
	const struct filter_request *request = argument;
	struct bpf_tc_hook hook = hook_of(request);
	int r;

	hook.attach_point = BPF_TC_INGRESS | BPF_TC_EGRESS;
	r = bpf_tc_hook_destroy(&hook);
	return r == -ENOENT || r == -EINVAL ? 0 : r;
}

int idm_datapath_clsact_destroy(uint32_t ifindex, int netns)
{
	struct filter_request request = {-1, ifindex, 0};

	return (int)idm_in_netns(netns, destroy_qdisc, &request);
}
