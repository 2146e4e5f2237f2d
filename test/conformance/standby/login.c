/*
 * iscsi-test-cu logs in by iscsi_full_connect_sync, which gives up when TEST UNIT
 * READY says that the port is on standby (SPC-4, 5.15.2.4.4). Loaded before
 * libiscsi, this logs in without asking, and takes the unit attentions of a new
 * session off all the same, as the original does.
 */
struct iscsi_context;
struct scsi_task;

extern int iscsi_connect_sync(struct iscsi_context *iscsi, const char *portal);
extern int iscsi_login_sync(struct iscsi_context *iscsi);
extern struct scsi_task *iscsi_testunitready_sync(struct iscsi_context *iscsi, int lun);
extern void scsi_free_scsi_task(struct scsi_task *task);

enum { ATTENTIONS_MAX = 10 };

int iscsi_full_connect_sync(struct iscsi_context *iscsi, const char *portal, int lun)
{
	int i, failed = iscsi_connect_sync(iscsi, portal);

	if (failed == 0)
		failed = iscsi_login_sync(iscsi);
	for (i = 0; failed == 0 && i < ATTENTIONS_MAX; i++) {
		struct scsi_task *task = iscsi_testunitready_sync(iscsi, lun);

		if (task == 0)
			return -1;
		scsi_free_scsi_task(task);
	}
	return failed;
}
