"""Step 2 of 4 on a deployment's path: AddTags and its kin."""

from flatshare.control.desk import Desk, as_tags
from flatshare.core.errors import ValidationFailed
from flatshare.wire.aws_shapes import Params

_MAX_TAGS = 50


def add_tags(desk: Desk, params: Params) -> Params:
    arn = _existing(desk, params["ResourceArn"])
    tags = desk.rows.tags(arn) | as_tags(params)
    if len(tags) > _MAX_TAGS:
        raise ValidationFailed(f'"{arn}" would have {len(tags)} tags, and {_MAX_TAGS} are the limit: delete some first.')
    desk.rows.replace_tags(arn, tags)
    return {"Tags": _listed(tags)}


def list_tags(desk: Desk, params: Params) -> Params:
    """Always one page: no resource has more tags than a page takes."""
    return {"Tags": _listed(desk.rows.tags(_existing(desk, params["ResourceArn"])))}


def delete_tags(desk: Desk, params: Params) -> Params:
    arn = _existing(desk, params["ResourceArn"])
    gone = set(params["TagKeys"])
    desk.rows.replace_tags(arn, {key: value for key, value in desk.rows.tags(arn).items() if key not in gone})
    return {}


def _existing(desk: Desk, arn: str) -> str:
    """The ARN, if it names something here; otherwise that resource's own sentence."""
    name = arn.partition("/")[2]
    arns = desk.arns
    if arn == arns.model(name):
        desk.model(name)
    elif arn == arns.config(name):
        desk.config(name)
    elif arn == arns.endpoint(name):
        desk.endpoint(name)
    else:
        raise ValidationFailed(
            f'"{arn}" is not the ARN of a model, an endpoint configuration or an endpoint of account {arns.account} in {arns.region}.'
        )
    return arn


def _listed(tags: dict[str, str]) -> list[Params]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
