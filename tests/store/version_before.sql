BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE cvaeopt_lease (
	study VARCHAR(512) NOT NULL, 
	slot INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	state VARCHAR(8) NOT NULL, 
	owner VARCHAR(128), 
	token INTEGER NOT NULL, 
	expires_at FLOAT NOT NULL, 
	attempt INTEGER NOT NULL, 
	attempt_epoch INTEGER NOT NULL, 
	epochs_reserved INTEGER NOT NULL, 
	epochs_done INTEGER NOT NULL, 
	folder VARCHAR(1024) NOT NULL, 
	checkpoint_epoch INTEGER, 
	checkpoint_host VARCHAR(255), 
	outcome VARCHAR(16), 
	reason TEXT, 
	PRIMARY KEY (study, slot), 
	UNIQUE (trial_id)
);
INSERT INTO "cvaeopt_lease" VALUES('main',0,1,0,'done','lab-1-8366-3f64',1,1.79583029173900461192e+09,1,0,4,4,'main/00000',4,'lab-1','complete','all epochs trained');
INSERT INTO "cvaeopt_lease" VALUES('main',1,2,1,'done','lab-1-8366-3f64',1,1.79583029249100208286e+09,1,0,2,2,'main/00001',2,'lab-1','failed','the training loss became nan in epoch 3.');
INSERT INTO "cvaeopt_lease" VALUES('main',2,3,2,'open',NULL,1,1795830173.14298,1,0,4,1,'main/00002',1,'lab-1',NULL,NULL);
CREATE TABLE cvaeopt_schema (
	version INTEGER NOT NULL, 
	PRIMARY KEY (version)
);
INSERT INTO "cvaeopt_schema" VALUES(1);
CREATE TABLE cvaeopt_study (
	name VARCHAR(512) NOT NULL, 
	study_id INTEGER NOT NULL, 
	definition TEXT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	seed INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	trials INTEGER, 
	epochs INTEGER NOT NULL, 
	total_epochs INTEGER, 
	wall_clock_s FLOAT, 
	facts TEXT NOT NULL, 
	stopped_reason TEXT, 
	started_at FLOAT, 
	alive_at FLOAT, 
	grace_until FLOAT, 
	PRIMARY KEY (name)
);
INSERT INTO "cvaeopt_study" VALUES('main',1,'{"study": {"description": "", "metric": "val_psnr", "window": 1, "seed_noise_db": 0.35, "seed": 3, "seeds": "each"}, "budget": {"trials": 5, "epochs": 4}, "fixed": {}, "search": {"lr": {"type": "float", "low": 0.0001, "high": 0.01, "log": true}}, "sampler": {"kind": "tpe", "n_startup_trials": 10, "n_ei_candidates": 24, "constant_liar": true}, "pruner": {"kind": "none"}, "enqueue": [{"lr": 0.001}, {"lr": 0.002}, {"lr": 0.003}, {"lr": 0.004}]}','d274c7c9cb18',3,1.79583016967898750305e+09,5,4,NULL,NULL,'{}',NULL,1.79583017057699108123e+09,1.79583017057699108123e+09,NULL);
CREATE TABLE cvaeopt_worker (
	id VARCHAR(128) NOT NULL, 
	study VARCHAR(512) NOT NULL, 
	host VARCHAR(255) NOT NULL, 
	pid INTEGER NOT NULL, 
	kernel VARCHAR(64) NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	trial INTEGER, 
	epoch INTEGER, 
	started_at FLOAT NOT NULL, 
	beat_at FLOAT NOT NULL, 
	ttl_s FLOAT NOT NULL, 
	stop INTEGER NOT NULL, 
	message TEXT NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "cvaeopt_worker" VALUES('lab-1-8366-3f64','main','lab-1',8366,'0123456789ab','cpu','stopped',NULL,NULL,1.79583017051800942426e+09,1.79583017315098643308e+09,120.0,0,'');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'main');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_system_attributes" VALUES(1,1,'study:metric_names','["val_psnr"]');
INSERT INTO "study_system_attributes" VALUES(2,1,'cvaeopt:digest','"d274c7c9cb18"');
INSERT INTO "study_system_attributes" VALUES(3,1,'cvaeopt:identity','"dbbc2ecc2db9"');
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_intermediate_values" VALUES(1,1,1,1.66666666666666657414e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(2,1,2,2.22222222222222237641e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(3,1,3,0.25,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(4,1,4,2.66666666666666662965e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(5,2,1,0.5,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(6,2,2,5.55555555555555580227e-01,'FINITE');
INSERT INTO "trial_intermediate_values" VALUES(7,3,1,8.3333333333333337034e-01,'FINITE');
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'x',7.45324340740464275079e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(2,2,'x',7.12337896088897082336e-02,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
INSERT INTO "trial_params" VALUES(3,3,'x',8.82243019907052783423e-01,'{"name": "FloatDistribution", "attributes": {"step": null, "low": 0.0, "high": 1.0, "log": false}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_system_attributes" VALUES(1,1,'fixed_params','{"lr": 0.001}');
INSERT INTO "trial_system_attributes" VALUES(2,1,'cvaeopt:enqueued','0');
INSERT INTO "trial_system_attributes" VALUES(3,2,'fixed_params','{"lr": 0.002}');
INSERT INTO "trial_system_attributes" VALUES(4,2,'cvaeopt:enqueued','1');
INSERT INTO "trial_system_attributes" VALUES(5,3,'fixed_params','{"lr": 0.003}');
INSERT INTO "trial_system_attributes" VALUES(6,3,'cvaeopt:enqueued','2');
INSERT INTO "trial_system_attributes" VALUES(7,4,'fixed_params','{"lr": 0.004}');
INSERT INTO "trial_system_attributes" VALUES(8,4,'cvaeopt:enqueued','3');
INSERT INTO "trial_system_attributes" VALUES(9,5,'fixed_params','{"lr": 0.005}');
INSERT INTO "trial_system_attributes" VALUES(10,5,'cvaeopt:nonce','"dd54a0a0a0e04e4d844bfeb43be3a5d5"');
INSERT INTO "trial_system_attributes" VALUES(11,1,'constraints:diverged','0.0');
INSERT INTO "trial_system_attributes" VALUES(12,1,'constraints:out_of_memory','0.0');
INSERT INTO "trial_system_attributes" VALUES(13,1,'constraints:crashed','0.0');
INSERT INTO "trial_system_attributes" VALUES(14,2,'constraints:diverged','1.0');
INSERT INTO "trial_system_attributes" VALUES(15,2,'constraints:out_of_memory','0.0');
INSERT INTO "trial_system_attributes" VALUES(16,2,'constraints:crashed','0.0');
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'epochs_done','4');
INSERT INTO "trial_user_attributes" VALUES(2,1,'reason','"all epochs trained"');
INSERT INTO "trial_user_attributes" VALUES(3,1,'worker','"lab-1-8366-3f64"');
INSERT INTO "trial_user_attributes" VALUES(4,1,'attempt','1');
INSERT INTO "trial_user_attributes" VALUES(5,1,'host','"lab-1"');
INSERT INTO "trial_user_attributes" VALUES(6,1,'device','"cpu"');
INSERT INTO "trial_user_attributes" VALUES(7,2,'epochs_done','2');
INSERT INTO "trial_user_attributes" VALUES(8,2,'reason','"the training loss became nan in epoch 3."');
INSERT INTO "trial_user_attributes" VALUES(9,2,'worker','"lab-1-8366-3f64"');
INSERT INTO "trial_user_attributes" VALUES(10,2,'attempt','1');
INSERT INTO "trial_user_attributes" VALUES(11,2,'failed','"diverged"');
INSERT INTO "trial_user_attributes" VALUES(12,2,'host','"lab-1"');
INSERT INTO "trial_user_attributes" VALUES(13,2,'device','"cpu"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,2.66666666666666662965e-01,'FINITE');
INSERT INTO "trial_values" VALUES(2,2,0,5.55555555555555580227e-01,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-28 01:42:50.633485','2026-11-28 01:42:52.068505');
INSERT INTO "trials" VALUES(2,1,1,'PRUNED','2026-11-28 01:42:52.184133','2026-11-28 01:42:52.892628');
INSERT INTO "trials" VALUES(3,2,1,'RUNNING','2026-11-28 01:42:52.942332',NULL);
INSERT INTO "trials" VALUES(4,3,1,'WAITING',NULL,NULL);
INSERT INTO "trials" VALUES(5,4,1,'WAITING',NULL,NULL);
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
