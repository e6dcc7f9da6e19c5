/* SPDX-License-Identifier: Apache-2.0 */
/* One program on one packet, without a network: what tests and measurements stand on. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>

#include "internal.h"

struct run_request {
	int program;
	struct bpf_test_run_opts *options;
};

static int64_t run(void *argument)
{
	const struct run_request *request = argument;

	return bpf_prog_test_run_opts(request->program, request->options) ? -errno : 0;
}

int idm_datapath_run(int program, const void *data, uint32_t size, void *data_out, void *context,
		     struct idm_datapath_run *ret, int netns)
{
	DECLARE_LIBBPF_OPTS(bpf_test_run_opts, options, .data_in = data, .data_size_in = size, .data_out = data_out,
			    .data_size_out = data_out ? ret->size_out : 0, .repeat = (int)ret->repeat);
	struct run_request request = {program, &options};
	int r;

	if (context) {
		options.ctx_in = options.ctx_out = context;
		options.ctx_size_in = options.ctx_size_out = ret->context_size;
	}
	r = (int)idm_in_netns(netns, run, &request);
	if (r)
		return r;
	ret->answer = options.retval;
	ret->duration_ns = options.duration;
	ret->size_out = options.data_size_out;
	return 0;
}

int idm_datapath_probe(int what, uint32_t number)
{
	if (what)
		return libbpf_probe_bpf_map_type((enum bpf_map_type)number, NULL);
	return libbpf_probe_bpf_prog_type((enum bpf_prog_type)number, NULL);
}
