"""The stages of the study, a file each, in the order of the argument."""

from rebasin_utils.study.stages.budgets import BUDGETS
from rebasin_utils.study.stages.connectivity import CONNECTIVITY
from rebasin_utils.study.stages.dense import DENSE, REWIND
from rebasin_utils.study.stages.diversity import DIVERSITY
from rebasin_utils.study.stages.early_matching import EARLY_MATCHING
from rebasin_utils.study.stages.few_images import FEW_IMAGES
from rebasin_utils.study.stages.imp import IMP
from rebasin_utils.study.stages.matching import MATCHING
from rebasin_utils.study.stages.overlaps import OVERLAPS
from rebasin_utils.study.stages.plane import PLANE
from rebasin_utils.study.stages.rescaling import RESCALING
from rebasin_utils.study.stages.reuse import REUSE
from rebasin_utils.study.stages.segment import SEGMENT
from rebasin_utils.study.stages.sign_agreement import SIGN_AGREEMENT
from rebasin_utils.study.stages.sign_paths import SIGN_PATHS
from rebasin_utils.study.stages.sign_transfer import SIGN_TRANSFER
from rebasin_utils.study.stages.sparse import SPARSE
from rebasin_utils.study.stages.stability import STABILITY
from rebasin_utils.study.stages.tickets import AWS, FINETUNING, LRR

STAGES = [
    DENSE,
    REWIND,
    IMP,
    MATCHING,
    CONNECTIVITY,
    OVERLAPS,
    SPARSE,
    BUDGETS,
    RESCALING,
    EARLY_MATCHING,
    FEW_IMAGES,
    SEGMENT,
    DIVERSITY,
    PLANE,
    LRR,
    AWS,
    FINETUNING,
    SIGN_TRANSFER,
    SIGN_PATHS,
    STABILITY,
    SIGN_AGREEMENT,
    REUSE,
]
