// SPDX-License-Identifier: Apache-2.0
// The listener filter: who is at the other end, asked of the socket itself before any byte is read.
//
// The stream's own source attributes follow X-Forwarded-For when HCM's use_remote_address is false (the default),
// so a client could write them. The socket cannot be written by a client. A PROXY header counts only if the
// connection comes from a listed network, anybody else's ends it; Envoy's proxy_protocol filter must then stand
// before this one.
//
// At the transparent listener the datapath tells more than the socket: whom it steered here, and for what. What it does
// not know is closed. The chain that fits the connection is named in filter state, for the listener's matcher: "http"
// where requests can be read and judged one by one, "tcp" for everything else, TLS included.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "mesh.h"
#include "door.h"
#include "json.h"

#define SO_ORIGINAL_DESTINATION 80 /* SO_ORIGINAL_DST of linux/netfilter_ipv4.h and of its IPv6 twin */
#define SOL_IP4 0
#define SOL_IP6 41
#define CHAIN_KEY IDM_TEXT("idmesh.chain")

struct listener {
	struct network *proxies;
	size_t proxy_count;
	bool original_destination;
	bool steers; // connections come from the datapath
	struct steered_maps *maps; // NULL while --mode validate looks on
};

static bool set_proxies(struct listener *self, const struct text_list *list, struct idm_error *why)
{
	self->proxies = calloc(list->count + 1, sizeof(*self->proxies));
	if (!self->proxies)
		return false;
	for (; self->proxy_count < list->count; self->proxy_count++) {
		if (!network_parse(list->items[self->proxy_count], &self->proxies[self->proxy_count])) {
			snprintf(why->message, sizeof(why->message), "proxy_protocol_from: not a network: %.100s",
				 list->items[self->proxy_count]);
			return false;
		}
	}
	return true;
}

static bool set_maps(struct listener *self, const char *pins, struct idm_error *why)
{
	self->steers = pins;
	if (pins && (self->proxy_count || self->original_destination)) {
		snprintf(why->message, sizeof(why->message),
			 "datapath: what it steers here comes from no proxy and no other redirection");
		return false;
	}
	// --mode validate may run where no datapath is.
	if (!pins || CALLBACK(is_validation_mode)())
		return true;
	self->maps = steered_open(pins, why);
	return self->maps;
}

static bool configure(struct listener *self, struct idm_bytes config, struct idm_error *why)
{
	struct text_list list = {0};
	char *pins = NULL;
	const struct json_field fields[] = {
		{"proxy_protocol_from", JSON_LIST, &list},
		{"original_dst", JSON_FLAG, &self->original_destination},
		{"datapath", JSON_TEXT, &pins},
	};
	bool good = json_read(config, fields, 3, why) && set_proxies(self, &list, why) && set_maps(self, pins, why);

	text_list_deinit(&list);
	free(pins);
	return good;
}

IDM_HOOK void ON(listener_filter_config_destroy)(struct listener *self)
{
	steered_close(self->maps);
	free(self->proxies);
	free(self);
}

IDM_HOOK void *ON(listener_filter_config_new)(struct envoy_listener_config *envoy, struct idm_bytes name,
					      struct idm_bytes config)
{
	struct listener *self = calloc(1, sizeof(*self));
	struct idm_error why = {{0}};

	(void)envoy;
	(void)name;
	if (!self)
		return NULL;
	if (!configure(self, config, &why) || !mesh_required(&why)) {
		mesh_log(ENVOY_ERROR, "listener filter refused: %s", why.message);
		ON(listener_filter_config_destroy)(self);
		return NULL;
	}
	return self;
}

// --- one connection ---

static bool socket_addresses(int fd, struct address *peer, struct address *local)
{
	struct sockaddr_storage socket;
	socklen_t size = sizeof(socket);

	if (getpeername(fd, (void *)&socket, &size) || !address_from_socket(&socket, peer))
		return false;
	size = sizeof(socket);
	return !getsockname(fd, (void *)&socket, &size) && address_from_socket(&socket, local);
}

// Where the client meant to go before the kernel redirected it; local stays if it was not redirected.
static void original_destination(int fd, struct address *local)
{
	struct sockaddr_storage socket;
	socklen_t size = sizeof(socket);
	struct address found;

	memset(&socket, 0, sizeof(socket));
	if (getsockopt(fd, local->family == 4 ? SOL_IP4 : SOL_IP6, SO_ORIGINAL_DESTINATION, &socket, &size))
		return;
	if (address_from_socket(&socket, &found))
		*local = found;
}

static bool trusted_proxy(const struct listener *self, const struct address *peer)
{
	for (size_t i = 0; i < self->proxy_count; i++)
		if (network_contains(&self->proxies[i], peer))
			return true;
	return false;
}

// Envoy writes a link-local address with its scope ("fe80::1%2"), which is none of the address.
static struct idm_bytes without_scope(struct idm_bytes text)
{
	const char *percent = text.size ? memchr(text.ptr, '%', text.size) : NULL;

	return percent ? (struct idm_bytes){text.ptr, (size_t)(percent - text.ptr)} : text;
}

static bool envoy_address(bool found, struct idm_bytes text, uint32_t port, struct address *ret)
{
	if (!found || !address_parse(without_scope(text), ret))
		return false;
	ret->port = (uint16_t)port;
	return true;
}

// The addresses that the trusted proxy wrote into its PROXY header.
static bool proxied_addresses(struct envoy_listener *envoy, struct address *peer, struct address *local)
{
	struct idm_bytes text;
	uint32_t port;
	bool found = CALLBACK(listener_filter_get_remote_address)(envoy, &text, &port);

	if (!envoy_address(found, text, port, peer))
		return false;
	found = CALLBACK(listener_filter_get_local_address)(envoy, &text, &port);
	return envoy_address(found, text, port, local);
}

static bool same_place(const struct address *one, const struct address *other)
{
	return one->family == other->family && one->port == other->port &&
	       !memcmp(one->bytes, other->bytes, sizeof(one->bytes));
}

// An unlisted peer's PROXY header does not count here, but Envoy believes it: the services, original_dst clusters and
// X-Forwarded-For would be told what it says, even where its source is true and its destination alone is not. So
// Envoy must know the connection as the socket does, or as it was before the kernel redirected it.
static bool unproxied(struct envoy_listener *envoy, int fd, const struct connection *connection)
{
	struct address peer, local, original = connection->local;

	if (!proxied_addresses(envoy, &peer, &local) || !same_place(&peer, &connection->peer))
		return false;
	if (same_place(&local, &connection->local))
		return true;
	original_destination(fd, &original);
	return same_place(&local, &original);
}

static bool is_tls(struct envoy_listener *envoy)
{
	struct idm_bytes found;

	return CALLBACK(listener_filter_get_detected_transport_protocol)(envoy, &found) && found.size == 3 &&
	       !memcmp(found.ptr, "tls", 3);
}

// A TLS client that names no server has the empty name, which is known too.
static void server_name(struct envoy_listener *envoy, struct connection *ret)
{
	struct idm_bytes name = {0};

	if (!CALLBACK(listener_filter_get_requested_server_name)(envoy, &name)) {
		ret->sni_known = is_tls(envoy);
		return;
	}
	if (name.size > CONNECTION_SNI_MAX)
		return;
	memcpy(ret->sni, name.ptr, name.size);
	ret->sni_size = (uint16_t)name.size;
	ret->sni_known = 1;
}

static bool learn(const struct listener *self, struct envoy_listener *envoy, struct connection *ret)
{
	int fd = (int)CALLBACK(listener_filter_get_socket_fd)(envoy);

	memset(ret, 0, sizeof(*ret));
	ret->magic = CONNECTION_MAGIC;
	if (fd < 0 || !socket_addresses(fd, &ret->peer, &ret->local))
		return false;
	server_name(envoy, ret);
	if (trusted_proxy(self, &ret->peer))
		return proxied_addresses(envoy, &ret->peer, &ret->local);
	if (!unproxied(envoy, fd, ret))
		return false;
	if (self->steers)
		return steered_find(self->maps, &ret->peer, &ret->local, &ret->steered);
	if (self->original_destination)
		original_destination(fd, &ret->local);
	return true;
}

// For the listener's matcher. True if there is no choice.
static bool choose_chain(struct envoy_listener *envoy, const struct listener *self, const struct connection *connection)
{
	bool requests = connection->steered.l7 == IDM_L7_HTTP && !is_tls(envoy);

	return !self->steers ||
	       CALLBACK(listener_filter_set_filter_state)(envoy, CHAIN_KEY, requests ? IDM_TEXT("http") : IDM_TEXT("tcp"));
}

// What the gRPC services see of the connection (metadata_context_namespaces); they look the identity up themselves.
static void tell(struct envoy_listener *envoy, const struct connection *connection)
{
	char text[ADDRESS_TEXT_MAX];

	address_format(&connection->peer, text);
	CALLBACK(listener_filter_set_dynamic_metadata_string)(envoy, MESH_KEY, IDM_TEXT("address"),
							      (struct idm_bytes){text, strlen(text)});
	address_format(&connection->local, text);
	CALLBACK(listener_filter_set_dynamic_metadata_string)(envoy, MESH_KEY, IDM_TEXT("local"),
							      (struct idm_bytes){text, strlen(text)});
}

IDM_HOOK const void *ON(listener_filter_new)(const struct listener *config, struct envoy_listener *envoy)
{
	(void)envoy;
	return config;
}

IDM_HOOK enum envoy_filter_status ON(listener_filter_on_accept)(struct envoy_listener *envoy, const struct listener *self)
{
	struct connection connection;

	// Without an address no filter behind this one could decide.
	if (!learn(self, envoy, &connection) ||
	    !CALLBACK(listener_filter_set_filter_state)(envoy, MESH_KEY, connection_bytes(&connection)) ||
	    !choose_chain(envoy, self, &connection)) {
		CALLBACK(listener_filter_close_socket)(envoy, IDM_TEXT("idmesh_no_address"));
		return ENVOY_STOP;
	}
	tell(envoy, &connection);
	return ENVOY_CONTINUE;
}
