from dataclasses import replace

from unicl.evaluate.job import Job


def test_the_plan_of_a_job_holds_only_images_that_could_be_read(job, colours):
    assert job.plan.samples == tuple(sample for sample in colours.samples if sample.id != "broken.png")
    assert job.plan.training is None


def test_the_plan_of_a_job_knows_the_training_images(job):
    learning = replace(job, training=job.pictures)
    assert isinstance(learning, Job)
    assert learning.plan.training == job.pictures.samples
