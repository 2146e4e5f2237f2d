/*
 * A host with several paths to a unit of a pair of nodes: reservations and resets
 * through the port on standby, what the other paths hear of them, and the owner's
 * death in between. One line for each step: "passed NAME" or "failed NAME: ...".
 *
 * paths OWNER-PORTAL STANDBY-PORTAL TARGET LUN OWNER-PID NAME NAME-2
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

enum { REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_ABORT, REGISTER_ANY };
enum { WRITE_EXCLUSIVE_REGISTRANTS = 5, TURN_US = 20000, TURNS = 500 };

static int lun;

static struct iscsi_context *login(const char *name, const char *portal, const char *target)
{
	struct iscsi_context *c = iscsi_create_context(name);

	iscsi_set_targetname(c, target);
	iscsi_set_session_type(c, ISCSI_SESSION_NORMAL);
	if (iscsi_connect_sync(c, portal) != 0 || iscsi_login_sync(c) != 0) {
		printf("failed login at %s: %s\n", portal, iscsi_get_error(c));
		exit(1);
	}
	return c;
}

/* ended writes how a task ended: "good", "status N", or its sense, "6/2a05". */
static const char *ended(struct scsi_task *task)
{
	static char text[32];

	if (task == NULL)
		return "no answer";
	if (task->status == SCSI_STATUS_CHECK_CONDITION)
		snprintf(text, sizeof text, "%x/%04x", task->sense.key, task->sense.ascq);
	else if (task->status == SCSI_STATUS_GOOD)
		snprintf(text, sizeof text, "good");
	else
		snprintf(text, sizeof text, "status %d", task->status);
	scsi_free_scsi_task(task);
	return text;
}

static const char *ready(struct iscsi_context *c)
{
	return ended(iscsi_testunitready_sync(c, lun));
}

static const char *persist(struct iscsi_context *c, int action, uint64_t key, uint64_t other)
{
	struct scsi_persistent_reserve_out_basic list;

	memset(&list, 0, sizeof list);
	list.reservation_key = key;
	list.service_action_reservation_key = other;
	return ended(iscsi_persistent_reserve_out_sync(c, lun, action, 0, WRITE_EXCLUSIVE_REGISTRANTS, &list));
}

static void want(const char *step, const char *got, const char *wanted)
{
	if (strcmp(got, wanted) == 0)
		printf("passed %s\n", step);
	else
		printf("failed %s: %s, not %s\n", step, got, wanted);
	fflush(stdout);
}

/* told waits for a unit attention, which may be on its way between the nodes. */
static void told(const char *step, struct iscsi_context *c, const char *attention)
{
	const char *got = "";
	int i;

	for (i = 0; i < TURNS; i++) {
		got = ready(c);
		if (strcmp(got, "good") != 0 && strcmp(got, "2/040b") != 0)
			break;
		usleep(TURN_US);
	}
	want(step, got, attention);
}

/* quiet takes off what there is to be told of a new session. */
static void quiet(struct iscsi_context *c)
{
	int i;

	for (i = 0; i < 10 && ready(c)[0] == '6'; i++)
		;
}

static int keys(struct iscsi_context *c)
{
	struct scsi_task *task = iscsi_persistent_reserve_in_sync(c, lun, SCSI_PERSISTENT_RESERVE_READ_KEYS, 1024);
	struct scsi_persistent_reserve_in_read_keys *list;
	int n = -1;

	if (task != NULL && task->status == SCSI_STATUS_GOOD && (list = scsi_datain_unmarshall(task)) != NULL)
		n = list->num_keys;
	if (task != NULL)
		scsi_free_scsi_task(task);
	return n;
}

int main(int argc, char **argv)
{
	struct iscsi_context *owner, *standby, *other;
	const char *got = "";
	int i;

	if (argc != 8)
		return 2;
	lun = atoi(argv[4]);
	owner = login(argv[6], argv[1], argv[3]);
	standby = login(argv[6], argv[2], argv[3]);
	other = login(argv[7], argv[2], argv[3]);
	quiet(owner), quiet(standby), quiet(other);
	want("the port is on standby", ready(standby), "2/040b");

	want("register through the owner", persist(owner, REGISTER, 0, 1), "good");
	want("register through standby", persist(standby, REGISTER, 0, 1), "good");
	want("register another host through standby", persist(other, REGISTER, 0, 2), "good");
	want("a wrong key through standby", persist(other, REGISTER, 1, 3), "status 24");
	want("three keys on both paths", keys(owner) == 3 && keys(standby) == 3 ? "yes" : "no", "yes");
	want("reserve through standby", persist(standby, RESERVE, 1, 0), "good");
	want("reserve by another host", persist(other, RESERVE, 2, 0), "status 24");
	want("release through standby", persist(standby, RELEASE, 1, 0), "good");
	told("the owner's path hears of the release", owner, "6/2a04");
	told("the other host hears of the release", other, "6/2a04");
	want("preempt the other host", persist(owner, PREEMPT, 1, 2), "good");
	told("it hears of that on standby", other, "6/2a05");
	want("two keys are left", keys(standby) == 2 ? "yes" : "no", "yes");
	want("reset through standby", iscsi_task_mgmt_lun_reset_sync(standby, lun) == 0 ? "done" : "refused", "done");
	told("the owner's path hears of the reset", owner, "6/2903");
	told("and the other host", other, "6/2903");
	told("and who asked for it", standby, "6/2903");

	/* The owner dies between two registrations: none is lost that was answered. */
	for (i = 0; i < TURNS; i++) {
		if (i == 5)
			kill(atoi(argv[5]), SIGKILL);
		got = persist(other, REGISTER_ANY, 0, 10 + i);
		if (strcmp(got, "good") != 0 && strcmp(got, "2/040a") != 0 && strcmp(got, "2/040b") != 0 && got[0] != '6')
			break;
		if (i > 5 && strcmp(got, "good") == 0 && strcmp(ready(other), "good") == 0)
			break;
		usleep(TURN_US);
	}
	want("register while the owner dies", got, "good");
	want("what was answered is there", persist(other, REGISTER, 10 + i, 99), "good");
	want("and who was registered", keys(other) == 3 ? "yes" : "no", "yes");
	return 0;
}
