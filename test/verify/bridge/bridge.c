/*
 * bridge: libiscsi for a program that speaks NBD.
 *
 *   bridge URL INITIATOR [KEY=VALUE...]
 *     nop_ms=N   send a NOP-Out every N ms of silence, and reconnect when the
 *                third one is not answered (0: never; then only the end of the
 *                connection tells that the target is gone)
 *
 * File descriptor 3 is a socket. It gets 16 bytes first: a magic number and the
 * disk's size, big-endian. Then requests and simple replies of NBD's
 * transmission phase follow. The session is kept up for ever: libiscsi logs in
 * again and sends what was under way once more. Like QEMU, unit attentions are
 * tried again at once, and BUSY and TASK SET FULL a while later. Any other
 * status is an error of the request (EIO).
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define PEER 3
#define HELLO 0x5346425249444745ull /* "SFBRIDGE" */
#define REQUEST_MAGIC 0x25609513u
#define REPLY_MAGIC 0x67446698u
#define DATA_MAX (16u << 20)
#define TRIES_MAX 10
#define NOPS_MAX 3
#define TICK_MS 100 /* libiscsi counts whole seconds */

enum { CMD_READ, CMD_WRITE, CMD_DISCONNECT, CMD_FLUSH };

struct header {
	uint32_t magic;
	uint16_t flags, command;
	uint64_t cookie, offset;
	uint32_t length;
} __attribute__((packed));

struct reply {
	uint32_t magic, error;
	uint64_t cookie;
} __attribute__((packed));

struct request {
	struct request *next; /* of those that wait to be tried again */
	uint64_t cookie, offset, due;
	uint32_t length;
	uint16_t flags, command;
	int tries;
	unsigned char *data;
};

static struct iscsi_context *iscsi;
static struct request *waiting;
static uint32_t block;
static int lun;
static uint64_t heard; /* ns: when the last answer came */

static void die(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	fputs("bridge: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Whole transfers: the program at the other end always reads. */
static void put(const void *p, size_t n)
{
	const char *at = p;
	while (n > 0) {
		ssize_t k = write(PEER, at, n);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			exit(0);
		at += k;
		n -= (size_t)k;
	}
}

static void get(void *p, size_t n)
{
	char *at = p;
	while (n > 0) {
		ssize_t k = read(PEER, at, n);
		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			exit(0);
		at += k;
		n -= (size_t)k;
	}
}

static void answer(struct request *r, uint32_t error)
{
	struct reply h = { htonl(REPLY_MAGIC), htonl(error), htobe64(r->cookie) };
	put(&h, sizeof(h));
	if (!error && r->command == CMD_READ)
		put(r->data, r->length);
	free(r->data);
	free(r);
}

static void submit(struct request *r);

static void again(struct request *r, uint64_t delay_ms)
{
	r->due = now() + delay_ms * 1000000u;
	r->next = waiting;
	waiting = r;
}

static void completed(struct iscsi_context *ctx, int status, void *command, void *private)
{
	struct request *r = private;
	struct scsi_task *task = command;
	int attention = status == SCSI_STATUS_CHECK_CONDITION && task && task->sense.key == SCSI_SENSE_UNIT_ATTENTION;
	int busy = status == SCSI_STATUS_BUSY || status == SCSI_STATUS_TASK_SET_FULL;

	heard = now();
	if (status != SCSI_STATUS_GOOD)
		fprintf(stderr, "bridge: status %#x, try %d: %s\n", (unsigned)status, r->tries, iscsi_get_error(ctx));
	if ((attention || busy) && r->tries++ < TRIES_MAX)
		again(r, attention ? 0 : 8u << (r->tries < 8 ? r->tries : 8));
	else
		answer(r, status == SCSI_STATUS_GOOD ? 0 : EIO);
	if (task)
		scsi_free_scsi_task(task);
}

static void submit(struct request *r)
{
	uint64_t lba = r->offset / block;
	struct scsi_task *task = NULL;

	switch (r->command) {
	case CMD_READ:
		task = iscsi_read16_task(iscsi, lun, lba, r->length, (int)block, 0, 0, 0, 0, 0, completed, r);
		if (task)
			scsi_task_add_data_in_buffer(task, (int)r->length, r->data);
		break;
	case CMD_WRITE:
		task = iscsi_write16_task(iscsi, lun, lba, r->data, r->length, (int)block, 0, 0, r->flags & 1, 0, 0, completed, r);
		break;
	case CMD_FLUSH:
		task = iscsi_synchronizecache16_task(iscsi, lun, 0, 0, 0, 0, completed, r);
		break;
	}
	if (!task) {
		fprintf(stderr, "bridge: submit: %s\n", iscsi_get_error(iscsi));
		answer(r, EIO);
	}
}

/* Reads one request and gives it to libiscsi. */
static void take(void)
{
	struct header h;
	struct request *r;

	get(&h, sizeof(h));
	if (ntohl(h.magic) != REQUEST_MAGIC)
		die("not a request");
	r = calloc(1, sizeof(*r));
	if (!r)
		die("no memory");
	r->flags = ntohs(h.flags);
	r->command = ntohs(h.command);
	r->cookie = h.cookie = be64toh(h.cookie);
	r->offset = be64toh(h.offset);
	r->length = ntohl(h.length);
	if (r->command == CMD_DISCONNECT) {
		iscsi_set_noautoreconnect(iscsi, 1);
		if (iscsi_is_logged_in(iscsi))
			iscsi_logout_sync(iscsi);
		exit(0);
	}
	if (r->length > DATA_MAX || r->length % block || r->offset % block)
		die("request of %u bytes at %llu", r->length, (unsigned long long)r->offset);
	if (r->length && posix_memalign((void **)&r->data, 4096, r->length))
		die("no memory");
	if (r->command == CMD_WRITE)
		get(r->data, r->length);
	submit(r);
}

static void resubmit(void)
{
	struct request *list = waiting, *next;
	uint64_t t = now();

	waiting = NULL;
	for (; list; list = next) {
		next = list->next;
		if (list->due <= t) {
			submit(list);
		} else {
			list->next = waiting;
			waiting = list;
		}
	}
}

static void nop_answered(struct iscsi_context *ctx, int status, void *data, void *private)
{
	(void)ctx, (void)data, (void)private;
	if (status == SCSI_STATUS_GOOD)
		heard = now();
}

/* Notices a target that went without a word. */
static void keepalive(uint64_t every)
{
	static uint64_t asked;
	uint64_t t = now();

	if (!every || !iscsi_is_logged_in(iscsi) || t - heard < every || t - asked < every)
		return;
	asked = t;
	if (iscsi_get_nops_in_flight(iscsi) >= NOPS_MAX) {
		fprintf(stderr, "bridge: no answer to %d NOPs: reconnecting\n", NOPS_MAX);
		iscsi_reconnect(iscsi);
		return;
	}
	iscsi_nop_out_async(iscsi, nop_answered, NULL, 0, NULL);
}

static void open_disk(const char *address, const char *initiator)
{
	struct iscsi_url *url;
	struct scsi_task *task;
	struct scsi_readcapacity16 *rc;
	uint64_t hello[2];

	iscsi = iscsi_create_context(initiator);
	if (!iscsi)
		die("no context");
	url = iscsi_parse_full_url(iscsi, address);
	if (!url)
		die("%s", iscsi_get_error(iscsi));
	iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(iscsi, ISCSI_HEADER_DIGEST_NONE_CRC32C);
	lun = url->lun;
	if (iscsi_full_connect_sync(iscsi, url->portal, url->lun))
		die("connect: %s", iscsi_get_error(iscsi));
	task = iscsi_readcapacity16_sync(iscsi, lun);
	if (!task || task->status != SCSI_STATUS_GOOD || !(rc = scsi_datain_unmarshall(task)))
		die("read capacity: %s", iscsi_get_error(iscsi));
	block = rc->block_length;
	hello[0] = htobe64(HELLO);
	hello[1] = htobe64((rc->returned_lba + 1) * rc->block_length);
	scsi_free_scsi_task(task);
	put(hello, sizeof(hello));
}

int main(int argc, char **argv)
{
	uint64_t nop_ns = 0;
	int i;

	if (argc < 3) {
		fprintf(stderr, "usage: bridge URL INITIATOR [KEY=VALUE...]; see the top of bridge.c\n");
		return 2;
	}
	for (i = 3; i < argc; i++) {
		if (!strncmp(argv[i], "nop_ms=", 7))
			nop_ns = strtoull(argv[i] + 7, NULL, 10) * 1000000u;
		else
			die("no key %s", argv[i]);
	}
	open_disk(argv[1], argv[2]);
	heard = now();
	for (;;) {
		struct pollfd p[2] = {
			{ .fd = PEER, .events = POLLIN },
			{ .fd = iscsi_get_fd(iscsi), .events = (short)iscsi_which_events(iscsi) },
		};
		/* No events: libiscsi waits for a second to pass. Its socket, already
		 * hung up, would make poll return at once. */
		int n = poll(p, p[1].events ? 2 : 1, waiting ? 1 : TICK_MS);
		if (n < 0 && errno != EINTR)
			die("poll: %s", strerror(errno));
		if (p[0].revents & (POLLIN | POLLHUP))
			take();
		if (iscsi_service(iscsi, p[1].events ? p[1].revents : 0) < 0)
			fprintf(stderr, "bridge: service: %s\n", iscsi_get_error(iscsi));
		resubmit();
		keepalive(nop_ns);
	}
}
